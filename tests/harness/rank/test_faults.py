"""Every fault against its closed form, in real gloo worlds, to 1e-12."""

import json
from pathlib import Path

import pytest

from tests.options import AVAILABLE
from tests.running import torchrun
from tests.worlds.faults import AVERAGED, IN_DIVISION

ONE_PASS = ("sum", "sum_then_divide", "mean", "none_vector", "per_sample_vmap")
NEEDS_OTHERS = ("double_division", "missing_division", "missing_all_reduce", "read_before_wait")
"""Nothing is missed, or divided, where there is one rank."""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_faults_equal_their_closed_forms(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    done = torchrun(ranks, "-m", "tests.worlds.faults", str(out))
    assert done.returncode == 0, done.stderr
    errors = json.loads(out.read_text())
    summed = len(AVAILABLE["reduction"]) * len(AVAILABLE["fault"])
    averaged = len(AVERAGED) * (len(AVAILABLE["fault"]) - len(IN_DIVISION))
    assert len(errors) == 2 * len(AVAILABLE["normalization"]) * (summed + averaged)
    assert {case: error for case, (error, _) in errors.items() if not error < 1e-12} == {}
    for case, (_, effect) in errors.items():
        assert (effect > 1e-3) == acts(case, ranks), f"{case} changes the gradient by {effect}"


def acts(case: str, ranks: int) -> bool:
    """Whether theory moves the gradient at all."""
    _, reduction, _, fault, _ = case.split()
    if fault == "alias":
        return reduction not in ONE_PASS and not (reduction == "micro_batch" and ranks == 4)  # 4 samples are one pass
    if fault == "missing_zero_grad":
        return reduction != "per_sample_vmap"
    return fault != "none" and not (fault in NEEDS_OTHERS and ranks == 1)
