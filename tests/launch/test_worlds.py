"""A launch, world after world: which deaths start another one, what is set aside, and which launches follow; without ranks."""

import signal
import socket
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.report.failures import failure_tables
from harness.report.frame import load_run
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import UNREACHABLE
from harness.schema.run_dir import RunDir
from launch.job import configure, run_all
from launch.patience import Ended
from launch.resume import undone_launches
from launch.signals import signals_noted
from launch.supervise import settle
from launch.task import Task
from launch.verdict import FAILURE, SUCCESS, Verdict
from launch.worlds import run_launch
from tests.launch.standins import DONE, End, StandIn, Worlds, leave_state
from tests.synthetic import steps, write_case

Make = Callable[..., RunDir]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make the run directory of a run of four cases, of two ranks."""

    def made(*overrides: str) -> RunDir:
        asked = ["workload=[mlp_digits]", "reduction=[sum,mean,none,micro_batch]", f"results_dir={tmp_path}", *overrides]
        return RunDir.create(configure([*asked, "torchrun.nproc_per_node=2"], None), datetime.now())

    return made


def case(run_dir: RunDir, place: int) -> str:
    return expand_cases(run_dir.config())[place].case_id


def dies(name: str, finished: int = 0, how: str = "") -> End:
    """Finish the first `finished` cases; then rank 1 dies in `name`, and rank 0 loses it."""

    def end(run_dir: RunDir) -> None:
        finish(run_dir, finished)
        leave_state(run_dir, 0, "lost", case=name, lost={"1": "dead"})
        leave_state(run_dir, 1, "died", case=name, words=how)

    return end


def finish(run_dir: RunDir, cases: int) -> None:
    config = run_dir.config()
    for each in expand_cases(config)[:cases]:
        write_case(run_dir, config, each, 0, steps(0.01)(each, 0))


def completes(run_dir: RunDir) -> None:
    finish(run_dir, 4)
    for rank in (0, 1):
        leave_state(run_dir, rank, "done")


def run(run_dir: RunDir, worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> Verdict:
    monkeypatch.setattr("launch.worlds.run_world", worlds)
    return run_launch(run_dir.config(), run_dir, Task(), lambda config, run_dir, task: [], lambda: None)


def test_a_world_that_has_finished_cases_is_no_restart_in_vain(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make("restarts=1")
    worlds = Worlds([*(dies(case(run_dir, place), finished=place) for place in (1, 2, 3)), completes])
    verdict = run(run_dir, worlds, monkeypatch)
    assert (worlds.started, verdict.status, verdict.complete) == (4, FAILURE, True), "a rank died, and every case is there"
    assert capsys.readouterr().err.count("the world is started again for what remains") == 3
    assert [end["culprits"][0]["case"] for end in run_dir.failures()] == [case(run_dir, place) for place in (1, 2, 3)]
    assert {end["culprits"][0]["rank"] for end in run_dir.failures()} == {1}
    assert worlds.aside == [{}] * 4


def test_worlds_that_finish_nothing_are_started_as_often_as_restarts_says(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make("restarts=2")
    worlds = Worlds(dies(case(run_dir, place)) for place in range(4))
    verdict = run(run_dir, worlds, monkeypatch)
    assert (worlds.started, verdict.status, verdict.complete) == (3, FAILURE, False)
    assert verdict.lines[0].startswith("rank 1 (pid")
    assert verdict.lines[-1] == "0 of 4 cases are finished and kept"


def test_without_restarts_the_first_death_ends_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make("restarts=0")
    worlds = Worlds([dies(case(run_dir, 1), finished=1)])
    verdict = run(run_dir, worlds, monkeypatch)
    assert (worlds.started, verdict.status) == (1, FAILURE)
    assert verdict.lines[-1] == "1 of 4 cases are finished and kept"


def test_a_case_in_which_two_worlds_died_is_set_aside(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make("restarts=4")
    deadly = case(run_dir, 1)
    worlds = Worlds([dies(deadly, finished=1, how="SIGKILL"), dies(deadly, finished=1, how="exit status 0"), completes])
    run(run_dir, worlds, monkeypatch)
    assert worlds.aside[:2] == [{}, {}]
    (reason,) = worlds.aside[2].values()
    assert list(worlds.aside[2]) == [deadly]
    assert reason.startswith("the world died in it twice: rank 1 (pid")
    assert "exit status 0" in reason


def test_a_death_in_a_replayed_case_is_not_charged_to_the_case_that_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make("restarts=4")
    replayed = f"rehearse {case(run_dir, 0)}"
    worlds = Worlds([dies(case(run_dir, 1), 1), dies(replayed, 1), dies(replayed, 1), completes])
    run(run_dir, worlds, monkeypatch)
    assert list(worlds.aside[3]) == [replayed]


def test_a_world_that_dies_before_its_first_case_is_not_started_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = Worlds([dies("")])
    verdict = run(make("restarts=4"), worlds, monkeypatch)
    assert (worlds.started, verdict.status) == (1, FAILURE)
    assert "before the first case" in verdict.lines[0]


def test_a_full_disk_stays_full(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make("restarts=4")

    def end(run_dir: RunDir) -> None:
        finish(run_dir, 1)
        leave_state(run_dir, 0, "unwritable", case=case(run_dir, 1), words="OSError: No space left on device")
        leave_state(run_dir, 1, "terminated")

    worlds = Worlds([end])
    verdict = run(run_dir, worlds, monkeypatch)
    assert (worlds.started, verdict.status) == (1, FAILURE)
    assert "could not write: OSError: No space left on device" in verdict.lines[0]


NOTED = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def harmless() -> Iterator[None]:
    """Let no signal that the launcher fails to note end this process."""
    before = [signal.signal(number, lambda *_: None) for number in NOTED]
    yield
    for number, handler in zip(NOTED, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("harmless")
@pytest.mark.parametrize("number", NOTED)
def test_a_signal_ends_the_run_and_no_world_follows(
    make: Make, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    run_dir = make("restarts=4")

    def end(run_dir: RunDir) -> None:
        finish(run_dir, 2)
        for rank in (0, 1):
            leave_state(run_dir, rank, "terminated")
        signal.raise_signal(number)

    worlds = Worlds([end], failed={})
    verdict = run(run_dir, worlds, monkeypatch)
    assert (worlds.started, verdict.status, verdict.stopped) == (1, FAILURE, True)
    assert verdict.lines == (f"ended by {number.name}: 2 of 4 cases are finished and kept",)
    assert not run_dir.failures(), "nobody is to blame"


@pytest.mark.usefixtures("harmless")
def test_signals_are_noted_in_their_order_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in NOTED]
    with signals_noted() as received:
        for number in NOTED:
            signal.raise_signal(number)
    assert received == ["SIGHUP", "SIGTERM", "SIGINT"]
    assert [signal.getsignal(number) for number in NOTED] == before


def stopped(launch: int, *, complete: bool) -> Verdict:
    if complete:
        return Verdict(SUCCESS, stopped=True, complete=True)
    return Verdict(FAILURE, (f"ended by SIGINT: 1 of 4 cases are finished and kept in launch {launch}",), stopped=True)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    def replaced(*verdicts: Verdict) -> StandIn:
        stand_in = StandIn(verdicts=verdicts)
        monkeypatch.setattr("launch.job.run_launch", stand_in)
        return stand_in

    yield replaced


def all_of(run_dir: RunDir, *, retry: bool = False) -> Verdict:
    config = run_dir.config()
    numbers = undone_launches(run_dir, config) if retry else range(config.launches)
    return run_all(config, run_dir, Task(retry=retry), lambda *asked: [], lambda done: None, numbers)


def test_a_signal_in_a_later_launch_keeps_what_is_there(make: Make, launches: Callable[..., StandIn]) -> None:
    run_dir = make("launches=3")
    stand_in = launches(DONE, stopped(1, complete=False))
    verdict = all_of(run_dir)
    assert [number for _, number in stand_in.launched] == [0, 1]
    assert (verdict.status, verdict.stopped, verdict.complete) == (FAILURE, True, False)
    assert verdict.lines == ("ended by SIGINT: 1 of 4 cases are finished and kept in launch 1",)
    assert [len(run_dir.listed("cases", number)) for number in range(3)] == [4, 0, 0]


def test_a_signal_after_the_last_case_of_a_launch_keeps_the_next_from_starting(
    make: Make, launches: Callable[..., StandIn]
) -> None:
    run_dir = make("launches=3")
    stand_in = launches(DONE, stopped(1, complete=True))
    verdict = all_of(run_dir)
    assert [number for _, number in stand_in.launched] == [0, 1]
    assert (verdict.status, verdict.stopped) == (FAILURE, True)
    assert verdict.lines == ("ended by a signal: 1 launches have not begun",)


def test_a_launch_that_lost_a_rank_makes_the_status_1_and_the_next_one_starts(
    make: Make, launches: Callable[..., StandIn]
) -> None:
    stand_in = launches(Verdict(FAILURE, complete=True), DONE)
    verdict = all_of(make("launches=2"))
    assert [number for _, number in stand_in.launched] == [0, 1]
    assert (verdict.status, verdict.complete) == (FAILURE, True)


def test_a_run_that_goes_on_starts_the_launches_that_lack_something(make: Make, launches: Callable[..., StandIn]) -> None:
    run_dir = make("launches=3")
    launches()
    all_of(run_dir)
    run_dir.forget("cases", case(run_dir, 2), launch=1)
    stand_in = launches()
    assert all_of(run_dir, retry=True).complete
    assert [number for _, number in stand_in.launched] == [1]


def test_last_words_of_this_machine_are_not_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = make()
    leave_state(run_dir, 0, "lost", lost={"1": UNREACHABLE})
    leave_state(run_dir, 1, "", host=socket.gethostname())
    monkeypatch.setattr("launch.supervise.time.sleep", lambda seconds: pytest.fail("waits"))
    settle(run_dir, Ended(at=float("inf")))


def test_the_dump_of_a_flight_recorder_is_named(make: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run_dir = make()

    def times_out(run_dir: RunDir) -> None:
        dies(case(run_dir, 0))(run_dir)
        for rank in (0, 1):
            (run_dir.ranks.path / f"flight.launch0.world0.rank_{rank}").write_bytes(b"pickle")

    monkeypatch.setattr("launch.worlds.run_world", Worlds([times_out, completes]))
    run_launch(run_dir.config(), run_dir, Task(), lambda *_: [], lambda: None)
    told = capsys.readouterr().err
    assert told.count("torch's flight recorder has written") == 1, "the second world leaves none"
    assert f"torchfrtrace --prefix flight.launch0.world0.rank_ {run_dir.ranks.path}" in told
    assert "open only those of your own runs" in told
    (table,) = [table for table in failure_tables(load_run(run_dir.path)) if table.title == "Ended early"]
    assert "ranks/ has flight.launch0.world0.rank_0, flight.launch0.world0.rank_1" in table.note
