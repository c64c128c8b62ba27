"""`make bench` runs; its measurements are not asserted."""

import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np
import pytest

from harness.report.frame import load_run
from harness.schema.case import Case
from launch.__main__ import main as launch_main
from tests.bench import cost_line
from tests.bench.__main__ import ON_REQUEST, PARTS, main
from tests.bench.busbw import CALLS
from tests.bench.same import MATRIX, OWN, VISITS
from tests.bench.startup import PHASES, print_ratios, start_bare, start_run
from tests.bench.step import SETTINGS
from tests.running import ENVIRONMENT, HANG_S, ROOT
from tests.synthetic import make_run


@pytest.mark.full
def test_the_bare_loop_is_compared() -> None:
    done = _run("tests.bench.step", "10")
    assert done.returncode == 0, done.stderr
    assert all(f"step of {setting.title}" in done.stdout for setting in SETTINGS)


@pytest.mark.full
def test_the_bandwidth_is_compared() -> None:
    done = _run("tests.bench.busbw", "10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the sweep") == len(CALLS) + 1


@pytest.mark.full
def test_the_start_up_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    run, bare = start_run(), start_bare()
    times = [0.0, *run.phases.values(), run.exit]
    assert list(run.phases) == list(PHASES)
    assert times == sorted(times)
    assert 0 < bare.first_step < bare.exit
    print_ratios([(run, bare, bare)] * 10)
    printed = capsys.readouterr().out
    assert f"to exit                      {run.exit / bare.exit:.3f} [" in printed
    assert f"to the first warm-up step    {run.first_step / bare.first_step:.3f} [" in printed
    assert printed.count("(A/A)      1.000 [1.000, 1.000]") == 2


def test_the_planted_slow_down_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_main(["--config-dir", OWN, *MATRIX, *VISITS, "dry_run=true"]) == 0
    assert "would run 4 cases" in capsys.readouterr().out
    assert (
        launch_main(["--config-dir", OWN, *cost_line.MATRIX, "reduction.planted.milliseconds=[1.0,5.0]", "dry_run=true"]) == 0
    )
    assert "would run 4 cases" in capsys.readouterr().out


def test_the_line_on_cost_is_read_as_the_report_writes_it(tmp_path: Path) -> None:
    """A wait that doubles the step, over 20 rounds, and an equal option."""
    longer = {"mean": 1.0, "sum": 1.0, "none": 2.0}

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        noise = np.random.default_rng(list(case.reduction.encode())).normal(1, 0.01, (60, 2))
        return {("host", "step"): 0.01 * longer[case.reduction] * noise}

    rounds = cost_line.SETTINGS["20 rounds of 3 iterations"]
    run = load_run(make_run(tmp_path, seconds, "workload=[mlp_digits]", "reduction=[mean,sum,none]", *rounds).path)
    equal, waiting = cost_line.lines(run)
    assert (equal.claimed, waiting.claimed) == (False, True)
    assert 1 < equal.half < 1.1 and cost_line.step_ms(run) == pytest.approx(10, rel=0.02)


def test_every_part_has_a_name_and_runs_without_arguments() -> None:
    shared = {"__init__", "__main__", "rounds", "world"}
    assert {path.stem for path in Path(ROOT, "tests", "bench").glob("*.py")} - shared == {*PARTS, *ON_REQUEST}
    for name in PARTS + ON_REQUEST:
        signature(import_module(f"tests.bench.{name}").main).bind()
        assert "if __name__" in Path(ROOT, "tests", "bench", f"{name}.py").read_text()


def test_an_unknown_part_is_refused_before_any_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verdicts", "stepp"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "stepp" in line
    assert all(name in line for name in PARTS + ON_REQUEST)


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ...` to its end."""
    command = (sys.executable, "-m", module, *arguments)
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False)
