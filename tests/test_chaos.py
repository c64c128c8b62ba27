"""One fault of each kind, on real runs: ended in time, named, nothing lost. `make chaos` tries every kind in every phase."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from harness.report.frame import load_run
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import DEADLINE_S, GRACE_S, Chaotic
from tests.chaos.trial import attempt, undisturbed
from tests.needs import needs

Begin = Callable[..., Chaotic]
ONE_OF_EACH = list({fault.kind: fault for fault in FAULTS if fault.phase in ("aggregate", "compare") and fault.victim}.values())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Of the matrix without the phase `drift`."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a run, with overrides; whatever becomes of the test, nothing of it is left."""
    with ExitStack() as begun:

        def start(*overrides: str) -> Chaotic:
            run = Chaotic(tmp_path / "run", overrides)
            run.start()
            begun.callback(run.close)
            return run

        yield start


def test_there_is_one_of_each() -> None:
    assert {fault.kind for fault in ONE_OF_EACH} == {fault.kind for fault in FAULTS}
    assert len(FAULTS) >= 40


@pytest.mark.parametrize("fault", ONE_OF_EACH, ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path: Path, expected: pd.DataFrame) -> None:
    needs(fault.missing)
    trial = attempt(fault, tmp_path / "run", expected)
    assert trial.good, vars(trial)


def test_a_world_that_died_is_started_again_for_what_remains(begin: Begin, expected: pd.DataFrame) -> None:
    run = begin()
    run.plant("kill", "forward")
    status, output, _ = run.end()
    assert status == 1, "a rank died"
    assert "rank 1 (pid" in output
    assert "started again for what remains" in output
    whole = load_run(run.run_dir.path)
    assert set(whole.cases.status) == {"ok"}
    assert not whole.missing
    assert [end["culprits"][0]["rank"] for end in whole.ends] == [1]
    assert run.discrepancies().equals(expected)
    assert "Ended early" in (run.run_dir.report / "report.md").read_text()


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


def test_what_others_are_held_against_is_left_when_it_kills_the_world_twice(begin: Begin) -> None:
    """A death in a finished case that is run again is charged to that, and to no case that waits for it."""
    run = begin()
    waiting = run.plant("kill", "forward")
    (finished,) = run.run_dir.finished()
    for _ in range(2):
        run.plant("kill", "forward", case=f"rehearse {finished}")
    status, output, _ = run.end()
    assert status == 1
    whole = load_run(run.run_dir.path)
    assert whole.cases.status.eq("ok").all(), output
    said = whole.findings[whole.findings.kind == "not_compared"].set_index("case_id").statement
    assert said[waiting].startswith(f"{finished} could not be run again when the run went on")


def test_a_stopped_world_is_noticed_by_the_launcher_itself(begin: Begin) -> None:
    """When every rank stands still there is nobody to ask."""
    run = begin("restarts=0")
    run.plant("stop", "forward")
    run.strike(lambda: os.kill(run.run_dir.ranks.statuses()[0].pid, signal.SIGSTOP))
    status, output, seconds = run.end()
    assert (status, run.orphans()) == (1, 0)
    assert seconds < DEADLINE_S + GRACE_S
    assert "does not answer: it is stopped, or hangs" in output
