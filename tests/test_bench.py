"""`make bench` runs; what it measures is not asserted."""

from tests.bench.step import ROUNDS
from tests.running import torchrun


def test_the_bare_loop_is_compared() -> None:
    done = torchrun(2, "-m", "tests.bench.step", "10")
    assert done.returncode == 0, done.stderr
    assert all(f"step of mean + all_reduce on {name}" in done.stdout for name in ROUNDS)
