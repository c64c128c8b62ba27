"""Timeouts of the launcher, on a fake clock."""

import os
import signal
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from harness.schema.rank_state import RankStatus, this_machine
from launch import patience
from launch.patience import FINISHED_S, SEEN_S, TROUBLE_S, Ended, Limits, Patience
from tests.launch.standins import gone_pid

LIMITS = Limits(ranks=2, arrival_s=100.0, stopped_s=20.0)
ELSEWHERE = "another machine"


class Clock:
    """Seconds, as the test sets them."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr(patience, "time", own)
    return own


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Ranks that a signal has stopped."""
    ranks = set[int]()
    monkeypatch.setattr(patience, "stopped_ones", lambda statuses: [one for one in statuses if one.rank in ranks])
    return ranks


def process(status: int | None = None) -> Any:
    """A process that lives, or has ended with a status."""
    return SimpleNamespace(poll=lambda: status)


def statuses(*ended: str, machine: str = ELSEWHERE) -> list[RankStatus]:
    return [RankStatus(rank, 1, "host", machine, ended=how) for rank, how in enumerate(ended)]


def waits(clock: Clock, tried: Patience, seconds: float, seen: list[RankStatus], *processes: Any) -> bool:
    """True if the launcher still waits just before `seconds` have passed, and no longer just after."""
    began = clock.now
    first = tried.is_at_its_end(seen, processes)
    clock.now = began + seconds - 0.1
    before = tried.is_at_its_end(seen, processes)
    clock.now = began + seconds + 0.1
    return (first, before, tried.is_at_its_end(seen, processes)) == (False, False, True)


def test_a_stopped_rank_is_given_up_after_the_deadline(clock: Clock, still: set[int]) -> None:
    tried = Patience(LIMITS, Ended())
    assert not tried.is_at_its_end(statuses("", ""), [process()])
    clock.now += 500
    still.add(1)
    assert waits(clock, tried, LIMITS.stopped_s, statuses("", ""), process())
    assert tried.ended.stopped == [1]


def test_a_rank_that_goes_on_in_between_has_the_whole_deadline_again(clock: Clock, still: set[int]) -> None:
    tried = Patience(LIMITS, Ended())
    for _ in range(5):
        still.add(0)
        assert not tried.is_at_its_end(statuses("", ""), [process()])
        clock.now += LIMITS.stopped_s - 1
        still.clear()
        assert not tried.is_at_its_end(statuses("", ""), [process()])
    still.add(0)
    assert waits(clock, tried, LIMITS.stopped_s, statuses("", ""), process())


def test_a_rank_that_never_reports_is_late(clock: Clock, still: set[int]) -> None:
    tried = Patience(LIMITS, Ended(), _began=clock.now)
    assert waits(clock, tried, LIMITS.arrival_s, statuses(""), process())
    assert tried.ended.late


def test_ranks_that_have_reported_may_work_for_as_long_as_they_like(clock: Clock, still: set[int]) -> None:
    tried = Patience(LIMITS, Ended())
    for _ in range(10):
        assert not tried.is_at_its_end(statuses("", ""), [process()])
        clock.now += 1e5
    assert not tried.ended.late


@pytest.mark.parametrize("how", ["error", "lost", "terminated", "died"])
def test_the_others_have_a_moment_once_a_rank_is_gone(clock: Clock, still: set[int], how: str) -> None:
    assert waits(clock, Patience(LIMITS, Ended()), TROUBLE_S, statuses("", how), process())


def test_a_rank_of_this_machine_that_is_gone_without_a_word_is_trouble(clock: Clock, still: set[int]) -> None:
    seen = [RankStatus(rank, gone_pid(), "host", this_machine()) for rank in (0, 1)]
    assert waits(clock, Patience(LIMITS, Ended()), TROUBLE_S, seen, process())


def test_a_process_that_failed_is_trouble(clock: Clock, still: set[int]) -> None:
    assert waits(clock, Patience(LIMITS, Ended()), TROUBLE_S, statuses("", ""), process(), process(255))


def test_nobody_is_waited_for_once_all_have_ended_and_one_not_well(clock: Clock, still: set[int]) -> None:
    assert Patience(LIMITS, Ended()).is_at_its_end(statuses("done", "error"), [process()])


def test_processes_may_outlive_ranks_that_ended_well(clock: Clock, still: set[int]) -> None:
    assert waits(clock, Patience(LIMITS, Ended()), FINISHED_S, statuses("done", "done"), process())


def test_last_words_of_other_hosts_are_waited_for(clock: Clock, still: set[int]) -> None:
    assert waits(clock, Patience(LIMITS, Ended()), LIMITS.stopped_s + SEEN_S, statuses("done", ""), process(0))


def test_a_stopped_process_is_seen_as_stopped() -> None:
    """The letter that the kernel shows; of this machine's ranks alone."""
    with subprocess.Popen(["sleep", "900"]) as sleeper:
        try:
            ours, theirs = (RankStatus(0, sleeper.pid, "host", machine) for machine in (this_machine(), ELSEWHERE))
            assert patience.stopped_ones([ours]) == []
            os.kill(sleeper.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED)
            assert patience.stopped_ones([ours, theirs]) == [ours]
        finally:
            sleeper.kill()
