"""All-reduced gradients against closed forms, in real gloo worlds, to 1e-12."""

import json
from pathlib import Path

import pytest

from tests.running import torchrun


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_gradients_equal_their_closed_forms(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    done = torchrun(ranks, "-m", "tests.worlds.closed_form", str(out))
    assert done.returncode == 0, done.stderr
    errors = json.loads(out.read_text())
    assert len(errors) == 3 * 2 * 8 * 2 * 2
    assert {case: error for case, error in errors.items() if not error < 1e-12} == {}
