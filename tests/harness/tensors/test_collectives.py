"""Collectives and digests do not depend on strides."""

import pytest
import torch

from harness.tensors.bits import bits
from tests.worlds.pool import Pool


@pytest.mark.parametrize("ranks", [2])
def test_collectives_take_any_strides(ranks: int, worlds: Pool) -> None:
    """Columns of a larger tensor, transposed views, and another layout on every rank."""
    assert worlds.run(ranks, "tests.worlds.strided:wrong") == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_sharded_tensors_are_gathered(ranks: int, worlds: Pool) -> None:
    """Rows that the ranks do not divide, fewer rows than ranks, and none; cut along another dimension, and not cut.

    Rows go without torch's own gathering, which ends the process where gloo is given CUDA tensors.
    """
    assert worlds.run(ranks, "tests.worlds.strided:in_pieces") == []


def test_bits_are_those_of_the_values() -> None:
    values = torch.arange(6.0)
    assert torch.equal(bits(torch.stack([values, -values], 1)[:, 0]), bits(values))
    assert torch.equal(bits(values.reshape(1, 6).t()), bits(values)), "a dimension of size 1 has any stride"
    assert torch.equal(bits(values[3:][::5]), bits(values[3])), "and so has a column of one element"
    assert bits(torch.empty(0)).numel() == 0
    assert torch.equal(bits(torch.tensor([1 + 2j]).conj()), bits(torch.tensor([1.0, -2.0])))
