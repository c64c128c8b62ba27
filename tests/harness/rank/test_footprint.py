"""Memory of a case above a bare step, which is measured once for all cases that share it."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.probes.control import Control
from harness.rank.footprint import COLUMNS, Footprint
from harness.schema.case import Case


def trial(bare_bytes: int = 0, buffers: int = 0) -> Any:
    """A trial as far as a footprint looks at it."""
    parts = SimpleNamespace(
        communication=SimpleNamespace(dtype=None),
        aggregation=SimpleNamespace(needs_bytes=lambda gradients, size: buffers),
        reduction=SimpleNamespace(needs_bytes=lambda gradients, samples: 1000 * samples),
        sync=SimpleNamespace(asynchronous=False),
    )
    bare = SimpleNamespace(measure=lambda enter: SimpleNamespace(taken_memory_bytes=bare_bytes))
    cut = SimpleNamespace(entering=lambda: [range(3)])
    world = SimpleNamespace(size=1, device=torch.device("cpu"))
    return SimpleNamespace(parts=parts, cut=cut, world=world, bare=lambda: bare)


@pytest.fixture
def footprint() -> Footprint:
    return Footprint(Control(None, 0, 1))


def test_what_was_there_before_is_not_charged_to_the_case(footprint: Footprint) -> None:
    gradient = [("weight", torch.zeros(10))]
    measured: Any = SimpleNamespace(peak_memory_bytes=900, taken_memory_bytes=700, gradient=gradient)
    (row,) = footprint.of(trial(buffers=40), measured, bare=500).tolist()
    assert dict(zip(COLUMNS, row, strict=True)) == {
        "peak_memory_bytes": 900,
        "above_baseline_bytes": 200,
        "declared_bytes": 40 + 3 * 1000,
    }


def test_a_bare_step_is_measured_once_for_cases_that_share_it(footprint: Footprint) -> None:
    case = Case("mlp_digits", "sum", "global_mean", "even", "flat", "none", "fp32")
    other = replace(case, reduction="mean", aggregation="ddp")
    wide = replace(case, precision="fp64")
    assert footprint.bare(case, trial(bare_bytes=500)) == 500
    assert footprint.bare(other, trial(bare_bytes=600)) == 500
    assert footprint.bare(wide, trial(bare_bytes=900)) == 900, "precision is one of the axes that it depends on"


def test_what_the_first_step_on_a_gpu_leaves_allocated_is_not_charged_to_the_bare_step(footprint: Footprint) -> None:
    """cuBLAS's workspaces: 65 MiB were seen on an H200."""
    one, taken = trial(), iter((65_000_100, 100))
    one.world.device = torch.device("cuda")
    one.bare = lambda: SimpleNamespace(measure=lambda enter: SimpleNamespace(taken_memory_bytes=next(taken)))
    assert footprint.bare(Case(*"abcdefg"), one) == 100
