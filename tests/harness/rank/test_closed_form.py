"""All-reduced gradients against closed forms, in real gloo worlds, to 1e-12."""

import json
import math
from pathlib import Path

import pytest

from tests.options import AVAILABLE
from tests.running import torchrun
from tests.worlds.closed_form import SIZES, WORKLOADS

IN_BACKWARD = ("ddp",)
"""Aggregations under which per_sample_vmap, which has no backward, is skipped."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_equal_their_closed_forms(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    done = torchrun(ranks, "-m", "tests.worlds.closed_form", str(out))
    assert done.returncode == 0, done.stderr
    errors = json.loads(out.read_text())
    axes = ("sharding", "reduction", "normalization", "aggregation")
    cells = math.prod(len(AVAILABLE[axis]) for axis in axes)
    skipped = len(AVAILABLE["sharding"]) * len(AVAILABLE["normalization"]) * len(IN_BACKWARD)
    assert len(errors) == len(WORKLOADS) * len(SIZES) * (cells - skipped)
    assert {case: error for case, error in errors.items() if not error < 1e-12} == {}
