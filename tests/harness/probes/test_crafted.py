"""Crafted data are exact in every dtype, and whatever goes wrong with them is seen."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.probes import crafted
from harness.probes.transfer import DTYPES

ELEMENTS = 96
RANKS = [1, 2, 3, 127, 128, 300]


def result(size: int, dtype: torch.dtype, seed: int = 5) -> Tensor:
    """What an all_reduce leaves, summed in the dtype itself, rank after rank."""
    summed = torch.zeros(ELEMENTS, dtype=dtype)
    for rank in range(size):
        own = torch.empty(ELEMENTS, dtype=dtype)
        crafted.fill(own, crafted.contribution(rank, size, seed))
        summed += own
    return summed


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_a_right_sum_is_exact(dtype: torch.dtype, size: int) -> None:
    right = result(size, dtype)
    crafted.check(right, crafted.total(size, 5))
    assert len(set(right.tolist())) > 1
    assert right.max() <= crafted.LARGEST


def one_more(right: Tensor) -> Tensor:
    right[ELEMENTS - 1] += 1
    return right


def halves_swapped(right: Tensor) -> Tensor:
    return right.roll(ELEMENTS // 2)


def moved_by_one(right: Tensor) -> Tensor:
    return right.roll(1)


def never_written(right: Tensor) -> Tensor:
    right[7] = torch.tensor(crafted.NEVER).to(right.dtype)
    return right


@pytest.mark.parametrize("wrong", [one_more, halves_swapped, moved_by_one, never_written])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_a_wrong_sum_is_seen(dtype: torch.dtype, wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(crafted.WrongResultError, match="elements are wrong"):
        crafted.check(wrong(result(2, dtype)), crafted.total(2, 5))


@pytest.mark.parametrize("size", RANKS[1:])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_a_rank_taken_for_another_is_seen(dtype: torch.dtype, size: int) -> None:
    mistaken = result(size, dtype)
    for rank, sign in ((0, -1), (1, 1)):
        own = torch.empty(ELEMENTS, dtype=dtype)
        crafted.fill(own, crafted.contribution(rank, size, 5))
        mistaken += sign * own
    with pytest.raises(crafted.WrongResultError):
        crafted.check(mistaken, crafted.total(size, 5))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_a_misplaced_share_is_seen(dtype: torch.dtype) -> None:
    """All_gather's output, whose shares have changed places, and one that stands twice."""
    right = torch.empty(ELEMENTS, dtype=dtype)
    crafted.fill(right, crafted.sequence(3))
    crafted.check(right, crafted.sequence(3))
    crafted.check(right[32:], crafted.sequence(3), 32)
    twice = right.clone()
    twice[32:64] = right[:32]
    for wrong in (right.roll(32), twice):
        with pytest.raises(crafted.WrongResultError):
            crafted.check(wrong, crafted.sequence(3))


def test_the_first_mistake_is_told_in_a_long_message() -> None:
    right = torch.empty(100_000)
    crafted.fill(right, crafted.sequence(0))
    expected = int(right[70_000])
    right[70_000] = torch.nan
    right[99_999] += 1
    with pytest.raises(crafted.WrongResultError, match=f"2 of 100000 .* nan instead of {expected} at 70000"):
        crafted.check(right, crafted.sequence(0))
