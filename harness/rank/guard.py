"""The guard of a rank: none outlives those who started it, or waits for one that is gone; the one that ends says so first."""

import contextlib
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from harness.rank.lifeline import Answer, Doing, Lifeline
from harness.schema.rank_state import ANSWERS, STUCK, process_start

POLL_S = 0.5
_ENDING = {signal.SIGTERM, signal.SIGINT}
"""What torchrun hands on to the ranks when it is told to end."""
_BEFORE = 0.95
"""Of the deadline: the others are asked before a collective gives up."""
WAITING = ("sync", "aggregate", "failed")
"""Phases in which a rank can do no more than wait for the others."""
OWN_WORK = (
    *("start", "import", "join", "assemble", "pre-flight", "rehearse"),
    *("drift", "compare", "diagnose", "ask", "trace", ""),
)
"""Phases in which a rank may be at work for as long as it likes; in every other one the deadline holds."""

Leave = Callable[..., None]
"""Called from the guard's thread with why the rank must end, `lost` being the ranks that do not answer, and how: it notes it,
and does not return to the measurement."""


class Clocked(Protocol):
    """What tells what its owner does, and since when."""

    phase: str
    since: float


@dataclass
class Guard:
    """A thread that calls `leave` on SIGTERM or SIGINT, once the parent or the launcher is gone, and once peers are lost.

    A Python signal handler would wait for the main thread, which may stand in a collective for ever; the byte that the
    interpreter's C handler writes to a pipe reaches the thread at once.
    """

    leave: Leave
    state: Clocked
    _watched: dict[int, str] = field(default_factory=dict)
    _lifeline: Lifeline | None = None
    _deadline_s: float = 0.0
    _asked: float = 0.0
    _failed: Callable[[], bool] = lambda: False

    def start(self, launcher_pid: int) -> None:
        """From the main thread; launcher_pid 0: there is none."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda *_: None)
        self._watched = {pid: process_start(pid) for pid in (os.getppid(), launcher_pid) if pid}
        threading.Thread(target=self._watch, args=(read_end,), name="guard", daemon=True).start()

    def miss(self, lifeline: Lifeline, deadline_s: float) -> None:
        """From now on, ask the other ranks whenever a phase takes longer than a collective may, and answer them."""
        lifeline.doing = self.doing
        self._lifeline, self._deadline_s = lifeline, deadline_s

    def heed(self, failed: Callable[[], bool]) -> None:
        """`failed` tells whether this rank waits for the others because its own part went wrong."""
        self._failed = failed

    def rest(self) -> None:
        """The ranks part: who is gone from now on is not missed."""
        self._lifeline = None

    def doing(self) -> Doing:
        """The phase of now, and the seconds since it began."""
        return "failed" if self._failed() else self.state.phase, time.monotonic() - self.state.since

    def _watch(self, read_end: int) -> None:
        while True:
            ready, _, _ = select.select([read_end], [], [], POLL_S)
            if ready and _ENDING & set(os.read(read_end, 64)):
                self.leave("terminated")
            if any(not start or process_start(pid) != start for pid, start in self._watched.items()):
                self.leave("orphaned")
            if self._lifeline is not None and self._waits_long():
                self._ask(self._lifeline)

    def _waits_long(self) -> bool:
        return time.monotonic() - max(self.state.since, self._asked) > _BEFORE * self._deadline_s

    def _ask(self, lifeline: Lifeline) -> None:
        """Long work of a rank's own is none of its peers' fault: while all answer, nothing happens. Once a deadline."""
        try:
            lost = self._lost(lifeline.ask())
            again = self._lost(lifeline.ask()) if lost else {}  # one silence may be a long call that holds the interpreter
        except Exception:  # no thread to be had, say: the guard must go on, and asks anew
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()
            return
        self._asked = time.monotonic()
        still = {rank: again[rank] for rank in lost if rank in again}  # a host that starts anew is unreachable, then dead
        if still and self._lifeline is not None:
            self.leave("lost", lost=still)

    def _lost(self, answers: Mapping[int, Answer]) -> dict[str, str]:
        found = {str(rank): answer.found for rank, answer in answers.items() if answer.found != ANSWERS}
        return found or {str(rank): STUCK for rank, answer in answers.items() if self._holds_up(answer)}

    def _holds_up(self, answer: Answer) -> bool:
        """Whether this rank waits for one that has been at a step's work for longer than a collective may take."""
        waits = self.doing()[0] in WAITING
        return waits and answer.phase not in (*WAITING, *OWN_WORK) and answer.seconds > _BEFORE * self._deadline_s
