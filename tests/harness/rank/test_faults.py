"""Every fault against its closed form, in real gloo worlds, to 1e-12."""

from collections.abc import Sequence

import pytest

from tests.matrices import pairs, product
from tests.options import AVAILABLE
from tests.worlds.faults import AGGREGATIONS, AVERAGED, in_division
from tests.worlds.pool import Pool

ONE_PASS = ("sum", "sum_then_divide", "mean", "none_vector", "per_sample_vmap")
NEEDS_OTHERS = ("double_division", "missing_division", "missing_all_reduce", "read_before_wait")
"""Nothing is missed, or divided, where there is one rank."""
WORKLOADS = ["regression", "tokens"]
FACTORS = [AVAILABLE["reduction"], AVAILABLE["normalization"], AVAILABLE["fault"], AGGREGATIONS]
ALL_AT = 2
"""The world size at which `make test` runs every combination; at the others, every two options meet."""


def asked(cell: Sequence[str]) -> bool:
    """Return whether a cell is run: an averaging all-reduce is, under few reductions."""
    reduction, _, _, aggregation = cell
    return aggregation == "all_reduce" or reduction in AVERAGED


def check(worlds: Pool, ranks: int, workload: str, cells: list[tuple[str, ...]]) -> None:
    """Hold cells of one workload to their closed forms."""
    errors = worlds.run(ranks, "tests.worlds.faults:errors", workload, cells)
    assert set(errors) == {" ".join(cell) for cell in cells if not in_division(*cell[2:])}
    assert {cell: error for cell, (error, _) in errors.items() if not error < 1e-12} == {}
    for cell, (_, effect) in errors.items():
        assert (effect > 1e-3) == acts(cell, ranks), f"{cell} changes the gradient by {effect}"


def acts(cell: str, ranks: int) -> bool:
    """Whether theory moves the gradient at all."""
    reduction, _, fault, _ = cell.split()
    if fault == "alias":
        return reduction not in ONE_PASS and not (reduction == "micro_batch" and ranks == 4)  # 4 samples are one pass
    if fault == "missing_zero_grad":
        return reduction != "per_sample_vmap"
    return fault != "none" and not (fault in NEEDS_OTHERS and ranks == 1)


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("ranks", [ALL_AT])
def test_every_combination_equals_its_closed_form(worlds: Pool, ranks: int, workload: str) -> None:
    check(worlds, ranks, workload, list(filter(asked, product(*FACTORS))))


@pytest.mark.full
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_every_combination_equals_its_closed_form_at_every_size(worlds: Pool, ranks: int, workload: str) -> None:
    check(worlds, ranks, workload, list(filter(asked, product(*FACTORS))))


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_every_two_options_equal_their_closed_form(worlds: Pool, ranks: int) -> None:
    cells = pairs(WORKLOADS, *FACTORS, seed=ranks, valid=lambda cell: asked(cell[1:]) and not in_division(*cell[3:]))
    for workload in WORKLOADS:
        check(worlds, ranks, workload, [cell for own, *cell in cells if own == workload])
