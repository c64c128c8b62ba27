"""`make bench` runs; what it measures is not asserted."""

from tests.bench.busbw import CALLS
from tests.bench.same import MATRIX, OWN, VISITS
from tests.bench.step import SETTINGS
from tests.running import launch, torchrun


def test_the_bare_loop_is_compared() -> None:
    done = torchrun(2, "-m", "tests.bench.step", "10")
    assert done.returncode == 0, done.stderr
    assert all(f"step of {setting.title}" in done.stdout for setting in SETTINGS)


def test_the_bandwidth_is_compared() -> None:
    done = torchrun(2, "-m", "tests.bench.busbw", "10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the sweep") == len(CALLS) + 1


def test_the_planted_slow_down_can_be_asked_for() -> None:
    done = launch("--config-dir", OWN, *MATRIX, *VISITS, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "would run 4 cases" in done.stdout
