"""All-reduced gradients against closed forms, in real gloo worlds, to 1e-12."""

import json
import math
from pathlib import Path

import pytest

from tests.options import AVAILABLE
from tests.running import torchrun
from tests.skips import unknown
from tests.worlds.closed_form import CUTS

LOSSY = {"ddp_fp16": 2e-3}
"""Aggregations that round what they send, and how far they may be off; the matrices here are too small for ddp_powersgd."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_equal_their_closed_forms(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    done = torchrun(ranks, "-m", "tests.worlds.closed_form", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    errors, skipped = found["errors"], found["skipped"]
    cells = math.prod(len(AVAILABLE[axis]) for axis in ("reduction", "normalization", "aggregation"))
    assert len(errors) + len(skipped) == len(CUTS) * cells
    assert unknown(skipped.values()) == []
    assert {case: error for case, error in errors.items() if not error < LOSSY.get(case.split()[-1], 1e-12)} == {}
    assert {cell.split()[-1] for cell in errors} == set(AVAILABLE["aggregation"]) - {"ddp_bf16"}, "each was measured"
