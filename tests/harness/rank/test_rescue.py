"""When a rank asks whether another has failed, what it does then, and what it must not touch."""

import os
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
import torch.distributed as dist

from harness.probes.control import Attempts
from harness.rank import measured_groups, process_group
from harness.rank.guard import Guard, Moment
from harness.rank.lifeline import Answer, Doing, Lifeline, watched
from harness.rank.measured_groups import ERROR_HANDLING, MeasuredGroups
from harness.rank.rescue import Rescue
from harness.schema.rank_state import ANSWERS, DEAD

LONG = 99.0
STILL, BUSY = Moment(LONG, LONG), Moment(LONG)


def attempts(left: list[int]) -> Attempts:
    """Attempts that note the number in which the groups were left."""
    made = Attempts()
    made.leave_groups = lambda: left.append(made.current)
    return made


def rescue(made: Attempts, *, spins: bool = False, asks_some: bool = False, default: list[str] | None = None) -> Rescue:
    defaults = [] if default is None else default
    return Rescue(made, lambda: defaults.append("left"), lambda: "", spins=spins, asks_some=asks_some)


def failed(number: int) -> dict[int, Answer]:
    return {1: Answer(ANSWERS, Doing("failed", failed=number))}


class TestAttempts:
    """The main thread's work, which the guard's thread may free."""

    def test_a_failure_is_known_before_the_groups_are_left_which_may_take_long(self) -> None:
        made, known = Attempts(), list[int]()
        made.leave_groups = lambda: known.append(made.failed)
        with made.next():
            assert made.fail()
        assert known == [1]

    def test_groups_are_left_once_and_an_error_after_that_is_a_consequence(self) -> None:
        left: list[int] = []
        made = attempts(left)
        with made.next():
            made.free(1)
            assert not made.fail()
        assert left == [1]

    def test_a_failure_seen_late_does_not_touch_the_groups_of_the_next_attempt(self) -> None:
        left: list[int] = []
        made = attempts(left)
        with made.next():
            pass
        made.free(1)
        with made.next():
            made.free(1)
        made.free(0)
        assert left == []

    def test_an_attempt_does_not_end_while_its_groups_are_being_left(self) -> None:
        """Else the main thread would make new groups, and the guard's thread leave those."""
        made, leaving, go_on = Attempts(), threading.Event(), threading.Event()
        order: list[str] = []

        def leave() -> None:
            leaving.set()
            go_on.wait()
            order.append("left")

        made.leave_groups = leave
        with made.next():
            thread = threading.Thread(target=lambda: made.free(1))
            thread.start()
            leaving.wait()
            threading.Timer(0.05, go_on.set).start()
        order.append("ended")
        thread.join()
        assert order == ["left", "ended"]


@pytest.mark.parametrize(
    ("moment", "spins", "some", "asks"),
    [
        (STILL, False, False, True),
        (BUSY, False, False, False),
        (BUSY, True, False, True),
        (Moment(1.9, LONG), False, False, False),
        (Moment(1.9), True, False, False),
        (Moment(LONG, LONG, waits=True), False, True, False),
        (Moment(LONG, LONG, waits=True), True, False, False),
        (Moment(LONG, LONG, waits=True), True, True, True),
    ],
)
def test_only_a_rank_that_may_wait_asks_and_not_at_once(moment: Moment, spins: bool, some: bool, asks: bool) -> None:
    made = Attempts()
    asking = rescue(made, spins=spins, asks_some=some)
    assert not asking.due(moment), "outside of an attempt"
    with made.next():
        assert not asking.due(moment), "this attempt has begun just now"
        made.since -= LONG
        assert bool(asking.due(moment)) == asks
        assert not asking.due(moment), "it has just asked"


@pytest.mark.parametrize(("own_work", "asks"), [(False, True), (True, False)])
def test_work_of_a_ranks_own_is_asked_about_less_often(own_work: bool, asks: bool) -> None:
    made = Attempts()
    asking = rescue(made, spins=True)
    with made.next():
        made.since -= LONG
        asking._asked = time.monotonic() - 3.0
        assert bool(asking.due(Moment(LONG, own_work=own_work))) == asks


@pytest.mark.parametrize(
    ("answers", "frees"),
    [(failed(2), True), (failed(1), False), (failed(3), False), (failed(0), False), ({1: Answer(DEAD)}, False)],
)
def test_what_another_rank_says_counts_for_its_own_attempt_alone(answers: dict[int, Answer], frees: bool) -> None:
    left: list[int] = []
    made = attempts(left)
    with made.next():
        pass
    with made.next():
        assert rescue(made).act(2, answers, STILL) == frees
    assert left == [2] * frees


@pytest.mark.parametrize(
    ("moment", "leaves"),
    [(Moment(LONG, LONG, in_collective=True), True), (Moment(LONG, 1.0, in_collective=True), False), (STILL, False)],
)
def test_the_default_group_is_left_only_where_the_users_code_stands_in_a_collective(moment: Moment, leaves: bool) -> None:
    default: list[str] = []
    made = attempts([])
    with made.next():
        rescue(made, default=default).act(1, failed(1), Moment(LONG))
        rescue(made, default=default).act(1, failed(1), moment)
    assert default == ["left"] * leaves, "also where the measured groups were left before"


@pytest.mark.parametrize("size", [2, 32, 33, 257])
@pytest.mark.parametrize("done", [0.0, 0.5, 0.9])
def test_a_failure_reaches_every_rank_of_a_large_world(size: int, done: float) -> None:
    """Each asks some of the others; those that are done with their part wait in the control group, and pass it on as well."""
    everyone = [attempts([]) for _ in range(size)]
    for one in everyone:
        one._made = one.current = 1
        one.since = -LONG
    everyone[size // 2].fail()
    waits = [rank % 10 < 10 * done for rank in range(size)]
    rounds = 0
    while any(one.failed != 1 for rank, one in enumerate(everyone) if not waits[rank]):
        rounds += 1
        assert rounds <= size.bit_length(), "a round is 2 s"
        before = [one.failed for one in everyone]
        for rank, one in enumerate(everyone):
            others = watched(rank, size)
            asking = rescue(one, spins=True, asks_some=len(others) < size - 1)
            if number := asking.due(Moment(LONG, waits=waits[rank])):
                asking.act(number, {other: Answer(ANSWERS, Doing(failed=before[other])) for other in others}, BUSY)


class TestGuard:
    """The thread that asks."""

    def guard(self, rescue: Any, left: list[tuple[str, object]]) -> tuple[Guard, Lifeline]:
        guard = Guard(lambda why, **said: left.append((why, said)), SimpleNamespace(phase="sync", since=0.0))
        line = SimpleNamespace(ask=lambda: {1: Answer(ANSWERS, Doing("sync"))}, doing=None)
        guard.miss(line, 300.0)  # type: ignore[arg-type]
        guard.rescue(rescue)
        return guard, line  # type: ignore[return-value]

    def test_a_rank_says_in_which_attempt_it_has_failed(self) -> None:
        made = attempts([])
        guard, _ = self.guard(rescue(made), [])
        answering, asking = Lifeline.open(1, "127.0.0.1"), Lifeline.open(0, "127.0.0.1")
        answering.doing = guard.doing
        asking.know([asking.address, answering.address])
        with made.next():
            made.fail()
            assert asking.ask()[1].doing.failed == 1

    @pytest.mark.parametrize(("error", "leaves"), [("", False), ("TIMEOUT", True), ("REMOTE_ERROR", False)])
    def test_an_error_that_nccl_has_noted_ends_the_rank_unless_another_has_failed(self, error: str, leaves: bool) -> None:
        """A timeout at once; another error once a rank that is gone, or has failed, would have been found out."""
        left: list[tuple[str, object]] = []
        noted = rescue(attempts([]))
        noted.error = lambda: error
        guard, line = self.guard(noted, left)
        for _ in range(2):
            guard._free(noted, line)
        words = f"NCCL notes {error} in a measured group (deadline_s=300)"
        assert left == [("error", {"words": words})] * 2 * leaves
        if error:
            noted._noted -= LONG
            left.clear()
            guard._free(noted, line)
            assert left == [("error", {"words": words})]


class Nccl:
    """torch's calls of NCCL, without a GPU: they are noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.error = "SUCCESS"
        monkeypatch.setattr(measured_groups, "ProcessGroup", SimpleNamespace)
        monkeypatch.setattr(measured_groups, "_new_group", self.make)
        monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", self.abort)
        monkeypatch.setattr(dist, "destroy_process_group", lambda group: self.calls.append("destroy"))
        monkeypatch.setattr(measured_groups, "answers", lambda device: True)

    def make(self, *given: object) -> object:
        self.calls.append(f"make {measured_groups.os.environ.get(ERROR_HANDLING)}")
        backend = SimpleNamespace(get_error=lambda: SimpleNamespace(name=self.error))
        return Group(_get_backend=lambda device: backend)

    def abort(self, group: object) -> None:
        self.hold.wait()
        self.calls.append("abort")


class Group(SimpleNamespace):
    """Known by its identity, as torch's are."""

    __hash__ = object.__hash__


class TestNccl:
    """The calls that free ranks whose device waits."""

    @pytest.fixture
    def nccl(self, monkeypatch: pytest.MonkeyPatch) -> Nccl:
        monkeypatch.delenv(ERROR_HANDLING, raising=False)
        return Nccl(monkeypatch)

    @pytest.fixture
    def groups(self, nccl: Nccl) -> MeasuredGroups:
        return MeasuredGroups("nccl", torch.device("cuda", 0))

    def test_a_group_is_aborted_once_and_never_destroyed(self, nccl: Nccl, groups: MeasuredGroups) -> None:
        groups.make(300.0)
        groups.leave()
        groups.leave()
        groups.destroy()
        assert nccl.calls == ["make 0", "abort"]
        assert len(groups._aborted) == 1, "its destructor would wait for its watchdog"
        groups.make(300.0)
        assert nccl.calls == ["make 0", "abort", "make 0"]
        assert not groups._left

    def test_a_group_that_is_being_made_meanwhile_is_left_too(self, nccl: Nccl, groups: MeasuredGroups) -> None:
        groups.make(300.0)
        groups.leave()
        groups.make(300.0, [0, 1])
        assert nccl.calls == ["make 0", "abort", "make 0", "abort"]

    def test_the_watchdog_ends_no_process_unless_the_user_says_so(
        self, nccl: Nccl, groups: MeasuredGroups, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        groups.make(300.0)
        assert ERROR_HANDLING not in measured_groups.os.environ, "a group of the user's own is as it would be"
        monkeypatch.setenv(ERROR_HANDLING, "1")
        groups.make(300.0)
        assert measured_groups.os.environ[ERROR_HANDLING] == "1"
        monkeypatch.setenv(ERROR_HANDLING, "3")
        groups.make(300.0)
        assert nccl.calls == ["make 0", "make 0", "make 3"], "torchrun gives its workers 1"

    def test_aborted_groups_are_not_kept_for_ever(
        self, nccl: Nccl, groups: MeasuredGroups, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(3):
            groups.make(300.0)
            groups.destroy()
        assert len(groups._aborted) == 3
        monkeypatch.setattr(measured_groups, "_KEPT_S", 0.0)
        groups.destroy()
        assert groups._aborted == []

    def test_what_nccl_has_noted_is_read_until_the_groups_are_left(self, nccl: Nccl, groups: MeasuredGroups) -> None:
        groups.make(300.0)
        assert groups.error() == ""
        nccl.error = "REMOTE_ERROR"
        assert groups.error() == "REMOTE_ERROR"
        groups.leave()
        assert groups.error() == "", "another rank has aborted, too"

    def test_an_abort_that_does_not_end_costs_the_world(
        self, nccl: Nccl, groups: MeasuredGroups, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measured_groups, "ABORT_S", 0.05)
        groups.make(300.0)
        nccl.hold.clear()
        groups.leave()
        assert groups.stuck
        nccl.hold.set()

    def test_nothing_is_asked_of_a_device_that_fails_every_call(
        self, nccl: Nccl, groups: MeasuredGroups, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measured_groups, "answers", lambda device: False)
        groups.make(300.0)
        groups.leave()
        assert nccl.calls == ["make 0"]


class TestDevice:
    """Check of a CUDA device after a failure."""

    def works(self, monkeypatch: pytest.MonkeyPatch, synchronize: Any) -> bool:
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        return process_group._works(torch.device("cuda", 0), within_s=0.2)

    def test_out_of_memory_leaves_a_device_that_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.works(monkeypatch, lambda device: None)

    def test_an_error_that_shows_when_the_device_comes_to_it_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def synchronize(device: object) -> NoReturn:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")

        assert not self.works(monkeypatch, synchronize)

    def test_a_device_that_never_ends_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ended = threading.Event()
        assert not self.works(monkeypatch, lambda device: ended.wait())
        ended.set()


def test_connections_are_shut_down_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    gone = (tmp_path / "file").open("w")  # has taken the number of a socket
    with one, other, gone:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            measured_groups.shut_down({one.fileno(): os.fstat(one.fileno()).st_ino, gone.fileno(): 1})
            measured_groups.shut_down({gone.fileno(): os.fstat(gone.fileno()).st_ino})
        assert other.recv(1) == b""
        assert len(list(Path("/proc/self/fd").iterdir())) == before
