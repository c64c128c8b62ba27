"""The guard of a rank: none outlives those who started it, or waits for one that is gone; the one that ends says so first."""

import contextlib
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from harness.rank.activity import Activity
from harness.rank.lifeline import Answer, Doing, Lifeline
from harness.rank.whereabouts import Standstill, place_now
from harness.schema.processes import find, still_lives
from harness.schema.rank_state import ANSWERS, STUCK

if TYPE_CHECKING:
    import psutil

    from harness.rank.rescue import Rescue  # it imports torch, and a rank is guarded before that

POLL_S = 0.5
_ENDING = {signal.SIGTERM, signal.SIGINT}
"""What torchrun hands on to the ranks when it is told to end."""
_BEFORE = 0.95
"""Of the deadline: the others are asked before a collective gives up."""
_AGAIN_S = 5.0
"""Until a rank that waits asks the others once more; one that works asks once a deadline, and so disturbs no measurement."""
_GRACE_S = 5.0
"""Beyond the deadline, for a collective to give up by itself: then its case fails, and the world goes on."""
CONTROL_GRACE_S = 600.0
"""Seconds that the control group waits beyond a measured collective: ranks wait there for rank 0's references too."""
_NAMED = 8
"""Ranks whose places are listed."""
WAITING = ("sync", "aggregate", "failed")
"""Phases in which a rank can do no more than wait for the others."""
OWN_WORK = ("start", "import", "join", "resume", "rehearse", "drift", "compare", "diagnose", "ask", "trace", "rebuild", "")
"""Phases in which a rank may be at work for as long as it likes; in every other one the deadline holds."""
ALIKE = ("assemble", "pre-flight")
"""Phases in which all ranks do the same. A rank that does nothing may keep no other waiting beyond the deadline. While one is
at work, as when it loads data that only it lacks, the others wait as long as the control group does."""

Leave = Callable[..., None]
"""Called from the guard's thread with why the rank must end, `lost` being the ranks that do not answer, and how: it notes it,
and does not return to the measurement."""


Waiting = tuple[bool, float]
"""(True if a rank waits for the others because its own part failed, seconds that it has stood in one collective of the control
group or 0 outside of any)."""


class Clocked(Protocol):
    """What tells what its owner does, and since when."""

    phase: str
    since: float


@dataclass(frozen=True)
class Moment:
    """State of the main thread as the guard sees it."""

    phase_s: float
    """Seconds in this phase."""
    still_s: float = 0.0
    """Seconds in one call, without using the CPU."""
    in_collective: bool = False
    """True in one that the user's code has called."""
    waits: bool = False
    """True in one of the control group."""
    own_work: bool = False
    """True in a phase in which a rank may be at work for as long as it likes."""


@dataclass
class Guard:
    """A thread that calls `leave` on SIGTERM or SIGINT, once the parent or the launcher is gone, and once peers are lost.

    A Python signal handler would wait for the main thread, which may stand in a collective for ever; the byte that the
    interpreter's C handler writes to a pipe reaches the thread at once.
    """

    leave: Leave
    state: Clocked
    dump: Callable[[], None] = lambda: None
    """Writes down which collectives this rank has called; for `leave`, where others are missed."""
    _watched: "list[psutil.Process | None]" = field(default_factory=list)
    """Parent and launcher; None for one that had ended before."""
    _lifeline: Lifeline | None = None
    _deadline_s: float = 0.0
    _asked: float = 0.0
    _waiting: Callable[[], Waiting] = lambda: (False, 0.0)
    _standstill: Standstill = field(default_factory=Standstill)
    _looked: float = 0.0
    _activity: Activity = field(default_factory=lambda: Activity(0.0))
    _rescue: "Rescue | None" = None

    def start(self, launcher_pid: int) -> None:
        """From the main thread; launcher_pid 0: there is none."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda *_: None)
        self._watched = [find(pid) for pid in (os.getppid(), launcher_pid) if pid]
        threading.Thread(target=self._watch, args=(read_end,), name="guard", daemon=True).start()

    def miss(self, lifeline: Lifeline, deadline_s: float) -> None:
        """From now on, ask the other ranks whenever a phase takes longer than a collective may, and answer them."""
        lifeline.doing = self.doing
        self._lifeline, self._deadline_s = lifeline, deadline_s
        self._activity = Activity(max(4 * POLL_S, deadline_s / 4))

    def heed(self, waiting: Callable[[], Waiting]) -> None:
        """`waiting` tells for how long this rank has been waiting for the others, and why."""
        self._waiting = waiting

    def rescue(self, rescue: "Rescue") -> None:
        """From now on, find out whether another rank has failed while this one waits for it."""
        self._rescue = rescue

    def rest(self) -> None:
        """The ranks part: who is gone from now on is not missed."""
        self._lifeline = None

    @property
    def overdue(self) -> bool:
        """True if this rank has waited for the others for about as long as a collective may take."""
        waits = self._lifeline is not None and self.state.phase in WAITING
        return waits and time.monotonic() - self.state.since > _BEFORE * self._deadline_s

    def doing(self) -> Doing:
        """The phase of now, the seconds since it began, and where the rank stands."""
        (failed, waited), place, still = self._waiting(), place_now(), self._standstill
        phase = "failed" if failed else self.state.phase
        return Doing(
            phase=phase,
            seconds=time.monotonic() - self.state.since,
            waits=waited > 0,
            place=str(place),
            collective=bool(place.collective),
            stands_s=still.seconds if place.collective and place.key == still.place.key else 0.0,
            busy=phase in ALIKE and not waited and self._activity.busy,
            failed=self._rescue.attempts.failed if self._rescue else 0,
        )

    def _watch(self, read_end: int) -> None:
        while True:
            ready, _, _ = select.select([read_end], [], [], POLL_S)
            if ready and _ENDING & set(os.read(read_end, 64)):
                self.leave("terminated")
            if not all(map(still_lives, self._watched)):
                self.leave("orphaned")
            if self._lifeline is not None and time.monotonic() - self.state.since > 2 * POLL_S:
                self._look()
                self._watch_others(self._lifeline)

    def _look(self) -> None:
        """Look at the main thread: seldom while a probe may be timing, which is work of a rank's own."""
        now = time.monotonic()
        if now - self._looked >= (_AGAIN_S if self.state.phase in OWN_WORK else 0.0):
            self._looked = now
            self._standstill.look()
        if self.state.phase in ALIKE:
            self._activity.look()

    def _watch_others(self, lifeline: Lifeline) -> None:
        try:
            if self._rescue is not None:
                self._free(self._rescue, lifeline)
            if self._standstill.place.collective and self._standstill.seconds > self._deadline_s + _GRACE_S:
                self._give_up(lifeline)
            if self._waits_long():
                self._ask(lifeline)
        except Exception:  # no thread to be had, say: the guard must go on, and asks anew
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()

    def _free(self, rescue: "Rescue", lifeline: Lifeline) -> None:
        """Free this rank if it waits for one that has failed; leave where NCCL has given up and no rank explains it."""
        moment, place = self._moment(), self._standstill.place
        number, error = rescue.due(moment), rescue.given_up()
        if number:
            answers = lifeline.ask()  # takes a moment, in which the main thread may have gone on
            stands = moment.in_collective and self._standstill.look() is place
            if rescue.act(number, answers, replace(moment, in_collective=stands)):
                return
        if error:
            self._ask(lifeline)  # names a rank that is gone
            if self._lifeline is not None:
                self.leave("error", words=f"NCCL notes {error} in a measured group (deadline_s={self._deadline_s:g})")

    def _moment(self) -> Moment:
        still, phase = self._standstill, self.state.phase
        return Moment(
            phase_s=time.monotonic() - self.state.since,
            still_s=still.seconds,
            in_collective=bool(still.place.collective),
            waits=self._waiting()[1] > 0,
            own_work=phase in OWN_WORK,
        )

    def _give_up(self, lifeline: Lifeline) -> None:
        """The user's own code waits in a collective, beyond the deadline: say so, and where the other ranks are."""
        waited, place = self._standstill.seconds, self._standstill.place
        others = [f"rank {rank} {_describe(answer)}" for rank, answer in sorted(lifeline.ask().items())]
        more = f"; and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        if self._standstill.look() is place and self._lifeline is not None:
            words = (
                f"has waited {waited:.0f} s in {place} (deadline_s={self._deadline_s:g}); {'; '.join(others[:_NAMED])}{more}"
            )
            self.leave("waited", words=words)

    def _waits_long(self) -> bool:
        now, soon = time.monotonic(), min(_AGAIN_S, self._deadline_s)
        in_collective = self._standstill.seconds if self._standstill.place.collective else 0.0
        waits = self.state.phase in WAITING or max(self._waiting()[1], in_collective) > soon
        again = soon if waits else self._deadline_s
        return now - self.state.since > _BEFORE * self._deadline_s and now - self._asked > again

    def _ask(self, lifeline: Lifeline) -> None:
        """Give up nobody while all ranks answer: a long computation on one rank is not an error of the others."""
        answers = lifeline.ask()
        if self._lost(answers):
            lost, answers = self._lost(answers), lifeline.ask()  # one silence may be a long call that holds the interpreter
            again = self._lost(answers)
            still = {rank: again[rank] for rank in lost if rank in again}  # a host that starts anew is unreachable, then dead
            if still and self._lifeline is not None:
                places = {rank: answers[int(rank)].doing.place for rank, how in still.items() if how == STUCK}
                self.leave("lost", lost=still, places=places)
        self._asked = time.monotonic()

    def _lost(self, answers: Mapping[int, Answer]) -> dict[str, str]:
        found = {str(rank): answer.found for rank, answer in answers.items() if answer.found != ANSWERS}
        busy = any(answer.doing.busy for answer in answers.values())  # another one may wait for its lock on a file
        return found or {str(rank): STUCK for rank, answer in answers.items() if self._holds_up(answer.doing, busy)}

    def _holds_up(self, other: Doing, busy: bool) -> bool:
        """Return True if this rank waits for one that has been at its own part for longer than a collective may take."""
        waited, limit = self._waiting()[1], _BEFORE * self._deadline_s
        if other.waits or other.phase in ("failed", *OWN_WORK) or not (waited or self.doing().phase in WAITING):
            return False
        if other.phase in ALIKE and waited < (_BEFORE * (self._deadline_s + CONTROL_GRACE_S) if busy else limit):
            return False
        if other.phase in WAITING and not waited:
            return False  # both are in the same collective, for all that is known
        if other.collective:  # it gives up by itself, or its group does
            return other.stands_s > self._deadline_s + 2 * _GRACE_S
        return other.seconds > (self._deadline_s + 2 * _GRACE_S if other.phase in WAITING else limit)


def _describe(answer: Answer) -> str:
    """Position of another rank, as reported by that rank."""
    doing = answer.doing
    if answer.found != ANSWERS:
        return f"is {answer.found}"
    if doing.collective:
        return f"waits in {doing.place}"
    if doing.waits:
        return f"waits for the others in phase {doing.phase}"
    return f"is in phase {doing.phase}" + (f", at {doing.place}" if doing.place else "")
