"""Faults on real runs: named, nothing lost, nothing left. `make chaos` judges how long each end takes, which no test does."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest

from harness.report.frame import load_run
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import MATRIX, Chaotic, sorted_rows
from tests.chaos.trial import attempt, undisturbed
from tests.conftest import Measure
from tests.needs import needs

Begin = Callable[..., Chaotic]
DEADLINE_S = 15.0
"""A healthy rank is not descheduled for so long, also beside other work on every core."""
BY_NAME = {fault.name: fault for fault in FAULTS}
KINDS = ("SIGSTOP in aggregate", "link down in aggregate")
"""Found by what the other ranks ask each other. These runs do not go on; `test_nothing_is_lost` has the same with a resume."""
SHORT = ("disk full in aggregate", "Ctrl-C in aggregate")
"""The faults of the table that are in `make test`; a killed rank is in the test of restarts."""


@pytest.fixture(scope="module")
def expected(measure: Measure, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Discrepancies of an undisturbed run, measured without processes of its own."""
    plan = tmp_path_factory.mktemp("undisturbed") / "plan.json"
    return sorted_rows(measure(*MATRIX, f"+env.REDUCEBENCH_CHAOS={plan}").path)


@cache
def launched(overrides: tuple[str, ...]) -> pd.DataFrame:
    """Discrepancies of an undisturbed launch: no fixture of the module, so that xdist spreads the table over its workers."""
    with TemporaryDirectory(prefix="undisturbed") as folder:
        return undisturbed(Path(folder) / "run", overrides, DEADLINE_S)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a run, with overrides; whatever becomes of the test, nothing of it is left."""
    with ExitStack() as begun:

        def start(*overrides: str) -> Chaotic:
            run = Chaotic(tmp_path / "run", overrides, deadline_s=DEADLINE_S)
            run.start()
            begun.callback(run.close)
            return run

        yield start


def test_the_table_holds_every_kind() -> None:
    assert {*KINDS, *SHORT} <= set(BY_NAME)
    assert len(BY_NAME) == len(FAULTS) >= 60
    assert {"SIGKILL", "SIGSTOP", "link down", "disk full", "Ctrl-C"} <= {fault.kind for fault in FAULTS}


@pytest.mark.parametrize("name", KINDS)
def test_a_rank_that_does_not_answer_is_named(name: str, tmp_path: Path) -> None:
    fault = BY_NAME[name]
    needs(fault.missing)
    trial = attempt(fault, tmp_path / "run", None, DEADLINE_S)
    assert _lost(trial.lost) == [], vars(trial)


def _lost(checks: list[str]) -> list[str]:
    """Checks that failed, without the one that another process on this machine can move."""
    return [check for check in checks if check != "in_time"]


def _ended_in_order(run: Chaotic, output: str) -> None:
    assert "ended by SIGINT: " in output
    assert "Traceback" not in output
    assert "cases and probes are finished and kept" in output
    assert "\r" not in output, "no terminal, no progress"
    assert "\x1b" not in output
    assert "case " not in output.split("$ ")[0]
    assert not run.run_dir.scratch(0).parent.exists()


def _nothing(run: Chaotic, output: str) -> None:
    """No look beyond the checks that hold for every fault."""


@pytest.mark.parametrize("name", SHORT)
def test_a_run_that_was_cut_short_goes_on_as_if_undisturbed(name: str, tmp_path: Path, expected: pd.DataFrame) -> None:
    fault = BY_NAME[name]
    needs(fault.missing)
    look = _ended_in_order if fault.kind == "Ctrl-C" else _nothing
    trial = attempt(fault, tmp_path / "run", expected, DEADLINE_S, look)
    assert _lost(trial.lost) == [], vars(trial)


@pytest.mark.full
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.name not in SHORT], ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    needs(fault.missing)
    trial = attempt(fault, tmp_path / "run", launched(fault.overrides), DEADLINE_S)
    assert _lost(trial.lost) == [], vars(trial)


def test_a_world_that_died_is_started_again_for_what_remains(begin: Begin, expected: pd.DataFrame) -> None:
    """The rank that is killed is named with its case; finished cases stand; the rows are an undisturbed run's."""
    run = begin()
    case = run.plant("kill", "forward")
    status, output, _ = run.end()
    assert status == 1, "a rank died"
    said = next(line for line in output.splitlines() if line.startswith("reducebench: "))
    assert said.startswith("reducebench: rank 1 (pid")
    assert "died without a word" in said
    assert f", in case {case}, phase forward" in said
    assert "rank 0" not in said
    assert "started again for what remains" in output
    whole = load_run(run.run_dir.path)
    assert set(whole.cases.status) == {"ok"}
    assert not whole.missing
    assert len(whole.samples_of(whole.cases.case_id[0])) == 2 * (2 + 4) * 5, "ranks, iterations, clocks and phases"
    assert run.standing, "a case was finished before"
    assert run.finished().items() >= run.standing.items()
    assert [end["culprits"][0]["rank"] for end in whole.failures] == [1]
    assert run.discrepancies().equals(expected)
    assert "Ended early" in (run.run_dir.report / "report.md").read_text()
    assert run.orphans()[0] == 0
    assert not run.run_dir.scratch(0).parent.exists()


@pytest.mark.full
def test_a_case_that_killed_the_world_twice_is_set_aside(begin: Begin) -> None:
    run = begin()
    first = run.plant("kill", "forward")
    run.plant("exit", "forward", case=first)
    status, output, _ = run.end()
    assert status == 1
    cases = load_run(run.run_dir.path).cases.set_index("case_id")
    assert cases.status.drop(first).eq("ok").all(), output
    assert cases.status[first] == "failed"
    assert cases.reason[first].startswith("the world died in it twice: rank 1")
    resumed = run.resume()
    assert resumed.returncode == 0, resumed.stderr
    assert set(load_run(run.run_dir.path).cases.status) == {"ok"}


@pytest.mark.full
def test_what_others_are_held_against_is_left_when_it_kills_the_world_twice(begin: Begin) -> None:
    """A death in a finished case that is run again is charged to that, and to no case that waits for it."""
    run = begin()
    waiting = run.plant("kill", "forward")
    (finished,) = run.run_dir.listed()
    for _ in range(2):
        run.plant("kill", "forward", case=f"rehearse {finished}")
    status, output, _ = run.end()
    assert status == 1
    whole = load_run(run.run_dir.path)
    assert whole.cases.status.eq("ok").all(), output
    said = whole.findings[whole.findings.kind == "not_compared"].set_index("case_id").statement
    assert said[waiting].startswith(f"{finished} could not be run again when the run went on")


@pytest.mark.full
def test_a_stopped_world_is_noticed_by_the_launcher_itself(begin: Begin) -> None:
    """When every rank stands still there is nobody to ask."""
    run = begin("restarts=0")
    run.plant("stop", "forward")
    run.strike(lambda: os.kill(run.run_dir.ranks.statuses()[0].pid, signal.SIGSTOP))
    status, output, _ = run.end()
    assert (status, run.orphans()[0]) == (1, 0)
    assert "does not answer: it is stopped, or hangs" in output
