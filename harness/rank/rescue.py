"""Rescue: a rank that waits in a collective finds out that another has failed, and stops waiting.

gloo tells it by itself, in the measured groups (rank/measured_groups.py). A kernel of NCCL, and torch's default group, wait on:
the guard's thread then asks the other ranks by their lifelines, beside every collective. Nothing is asked in the first seconds
of a phase, so that no measurement is disturbed that is made in many short steps.

The hazards, and what keeps from each:

- An answer may be of an earlier attempt, or of the next one: it names its number (`Attempts`).
- This rank's own attempt may end between the answer and what is done about it, and the main thread may make new groups:
  `Attempts.free` compares the number again, under the lock that the main thread needs to end the attempt.
- The main thread may be making a group (of part of the ranks) meanwhile: `MeasuredGroups` leaves it as soon as it is made.
- In a large world a rank asks some of the others only. One that is freed says that it has failed, and so the failure spreads;
  one that waits in the control group, which is where failed ranks wait, asks there too.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.probes.control import Attempts
from harness.rank.guard import Moment
from harness.rank.lifeline import Answer, watched
from harness.rank.process_group import World
from harness.schema.rank_state import ANSWERS

AFTER_S = 2.0
"""In one phase and one attempt."""
_AGAIN_S = 2.0
_SELDOM_S = 5.0
"""In work of a rank's own, as a probe that times collectives."""
_NOTED_S = 10.0
"""For the guard to find out which rank is gone, or has failed, once NCCL has noted an error."""
_TIMEOUT = "TIMEOUT"


@dataclass
class Rescue:
    """Rescue of one rank; called from the guard's thread."""

    attempts: Attempts
    leave_default: Callable[[], None]
    """Frees every rank that waits in torch's default group, which no rank can use afterwards."""
    error: Callable[[], str]
    """Return the error that NCCL has noted in the measured groups."""
    spins: bool
    """True with NCCL: while the device waits, the host polls it, and stands in no call."""
    asks_some: bool
    """True in a large world."""
    _asked: float = float("-inf")
    _noted: float = 0.0

    @classmethod
    def of(cls, world: World) -> "Rescue":
        """For the main thread of this process."""
        return cls(
            attempts=world.control.attempts,
            leave_default=world.leave_default,
            error=world.groups.error,
            spins=world.backend == "nccl",
            asks_some=len(watched(world.rank, world.size)) < world.size - 1,
        )

    def due(self, moment: Moment) -> int:
        """Return the number of the attempt in which the other ranks are to be asked now; 0: they are not."""
        number, now = self.attempts.current, time.monotonic()
        if not number or min(moment.phase_s, now - self.attempts.since) <= AFTER_S:
            return 0
        if now - self._asked <= (_SELDOM_S if moment.own_work else _AGAIN_S) or not self._may_wait(moment):
            return 0
        self._asked = now
        return number

    def _may_wait(self, moment: Moment) -> bool:
        if moment.waits:
            return self.asks_some and self.spins
        return self.spins or moment.still_s > AFTER_S

    def act(self, number: int, answers: Mapping[int, Answer], moment: Moment) -> bool:
        """Free the main thread if a rank says that it has failed in the attempt of this number; return True if one does."""
        failed = any(answer.found == ANSWERS and answer.doing.failed == number for answer in answers.values())
        if failed:
            stands = moment.in_collective and moment.still_s > AFTER_S
            self.attempts.free(number, self.leave_default if stands else lambda: None)
        return failed

    def given_up(self) -> str:
        """Return NCCL's error once it is certain that no answer of another rank explains it; else nothing."""
        noted, now = self.error(), time.monotonic()
        self._noted = (self._noted or now) if noted else 0.0
        return noted if noted == _TIMEOUT or (noted and now - self._noted > _NOTED_S) else ""
