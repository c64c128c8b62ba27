"""All-reduced gradients against closed forms, in real gloo worlds, to 1e-12."""

import pytest

from tests.matrices import pairs, product
from tests.options import AVAILABLE
from tests.skips import unknown
from tests.worlds.closed_form import AXES_OF_A_CELL, CUTS
from tests.worlds.pool import Pool

LOSSY = {"ddp_fp16": 2e-3}
"""Aggregations that round what they send, and how far they may be off; the matrices here are too small for ddp_powersgd."""
FACTORS = [AVAILABLE[axis] for axis in AXES_OF_A_CELL]
CUT_NAMES = [f"{sharding}-{workload}-{size}" for workload, size, sharding in CUTS]
ALL_AT = 2
"""The world size at which `make test` runs every combination; at the others, every two options meet."""


def check(worlds: Pool, ranks: int, cut: int, cells: list[tuple[str, ...]]) -> None:
    """Hold cells on one cut of one workload to their closed forms."""
    found = worlds.run(ranks, "tests.worlds.closed_form:errors", *CUTS[cut], cells)
    errors, skipped = found["errors"], found["skipped"]
    assert len(errors) + len(skipped) == len(cells) > 0
    assert unknown(skipped.values()) == []
    assert {cell: error for cell, error in errors.items() if not error < LOSSY.get(cell.split()[-1], 1e-12)} == {}
    assert {cell: error for cell, error in found["losses"].items() if not error < 1e-12} == {}
    if len(cells) == len(product(*FACTORS)):
        every = set(AVAILABLE["aggregation"]) - {"ddp_bf16"}
        alone_and_empty = ranks == 1 and CUTS[cut][2] == "empty_rank"
        assert {cell.split()[-1] for cell in errors} == (set() if alone_and_empty else every), "each was measured"


@pytest.mark.parametrize("cut", range(len(CUTS)), ids=CUT_NAMES)
@pytest.mark.parametrize("ranks", [ALL_AT])
def test_every_combination_equals_its_closed_form(worlds: Pool, ranks: int, cut: int) -> None:
    check(worlds, ranks, cut, product(*FACTORS))


@pytest.mark.full
@pytest.mark.parametrize("cut", range(len(CUTS)), ids=CUT_NAMES)
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_every_combination_equals_its_closed_form_at_every_size(worlds: Pool, ranks: int, cut: int) -> None:
    check(worlds, ranks, cut, product(*FACTORS))


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_every_two_options_equal_their_closed_form(worlds: Pool, ranks: int) -> None:
    """Cover every pair of options that occurs in a cell which is not skipped."""
    skipped = {
        (name, *cell.split())
        for cut, name in zip(CUTS, CUT_NAMES, strict=True)
        for cell in worlds.run(ranks, "tests.worlds.closed_form:skipped", *cut, product(*FACTORS))
    }
    cells = pairs(CUT_NAMES, *FACTORS, seed=ranks, valid=lambda cell: cell not in skipped)
    assert skipped.isdisjoint(cells)
    for cut, name in enumerate(CUT_NAMES):
        own = [cell for of, *cell in cells if of == name]
        if own:
            check(worlds, ranks, cut, own)
