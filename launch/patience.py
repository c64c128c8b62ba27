"""How long a launcher waits for ranks that do not come, do not move, or are gone."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.schema.processes import is_alive, is_stopped
from harness.schema.rank_state import RankStatus, this_machine
from launch.ending import Process

TROUBLE_S = 3.0
"""How long the others may take to end once a rank is gone: torchrun is told, and they note where they were."""
SEEN_S = 8.0
"""Until what another host wrote last is seen here, on a shared file system."""
FINISHED_S = 30.0
"""How long processes may take to end once all their ranks have."""


@dataclass
class Limits:
    """How long ranks may be silent."""

    ranks: int
    """Of the whole world."""
    arrival_s: float
    """Until the last one has reported."""
    stopped_s: float
    """That a rank of this host may stand still, stopped by a signal."""


@dataclass
class Ended:
    """How a world came to its end."""

    signal: str = ""
    """The name of the signal that cut it short."""
    stopped: list[int] = field(default_factory=list)
    """Ranks that stood still for longer than they may."""
    late: bool = False
    """Whether ranks had not reported in time."""
    failed: dict[str, int] = field(default_factory=dict)
    """Processes that had ended by themselves, and not well: by the names of their logs, to their return codes."""
    at: float = 0.0
    """When waiting was over, by the monotonic clock."""


@dataclass
class Patience:
    """With ranks that do not come, do not move, or are gone."""

    limits: Limits
    ended: Ended
    _began: float = field(default_factory=time.monotonic)
    _arrived: bool = False
    _since: dict[str, float] = field(default_factory=dict)
    """Since when something has been so without a break."""
    _stopped_since: dict[int, float] = field(default_factory=dict)

    def is_at_its_end(self, statuses: Sequence[RankStatus], processes: Sequence[Process]) -> bool:
        """Whether it is in vain to wait any longer."""
        now = time.monotonic()
        all_ended = 0 < self.limits.ranks <= len(statuses) and all(status.ended for status in statuses)
        all_gone = not any(process.poll() is None for process in processes)
        self._arrived = self._arrived or len(statuses) >= self.limits.ranks
        self.ended.late = not self._arrived and now - self._began > self.limits.arrival_s
        self._stopped_since = {one.rank: self._stopped_since.get(one.rank, now) for one in stopped_ones(statuses)}
        self.ended.stopped = [rank for rank, since in self._stopped_since.items() if now - since > self.limits.stopped_s]
        tired = [
            self._lasts("a rank is gone", _in_trouble(statuses, processes), TROUBLE_S),
            self._lasts("processes outlive their ranks", all_ended, FINISHED_S),
            self._lasts("last words are not seen", all_gone, self.limits.stopped_s + SEEN_S),
        ]
        failed = all_ended and any(status.ended != "done" for status in statuses)  # there is nobody left to wait for
        return failed or any(tired) or self.ended.late or bool(self.ended.stopped)

    def _lasts(self, what: str, holds: bool, seconds: float) -> bool:
        """Whether it has been so for longer than that."""
        if not holds:
            self._since.pop(what, None)
            return False
        return time.monotonic() - self._since.setdefault(what, time.monotonic()) > seconds


def stopped_ones(statuses: Sequence[RankStatus]) -> list[RankStatus]:
    """Those of this machine that a signal has stopped."""
    here = this_machine()
    return [status for status in statuses if status.machine == here and is_stopped(status.pid)]


def _in_trouble(statuses: Sequence[RankStatus], processes: Sequence[Process]) -> bool:
    """A rank has ended otherwise than well, or one of this machine is gone without a word; or a process failed."""
    here = this_machine()
    return any(process.poll() for process in processes) or any(
        status.ended not in ("", "done") or (not status.ended and status.machine == here and not is_alive(status.pid))
        for status in statuses
    )
