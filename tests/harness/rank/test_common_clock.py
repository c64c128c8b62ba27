"""Clocks of different hosts: estimated over the control group, never further off than is said."""

import json
from pathlib import Path

import pytest

from tests.running import torchrun

AHEAD_S = 0.5


def test_the_offset_of_another_host_is_as_far_off_as_is_said_at_most(tmp_path: Path) -> None:
    done = torchrun(3, "-m", "tests.worlds.clocks", str(tmp_path / "out.json"), str(AHEAD_S))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["shared"] is True, "three ranks of this host"
    first, second, third = found["offsets"]
    assert first == [0, 0]
    assert second == third, "ranks of one host have one offset"
    ahead, uncertainty = second
    assert 0 < uncertainty < AHEAD_S
    assert abs(ahead - AHEAD_S) <= uncertainty
    assert found["largest"] == pytest.approx(uncertainty + 0.25), "the drift that one rank has seen, and what it did not know"
