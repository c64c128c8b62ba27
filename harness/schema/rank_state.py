"""RankState: what a rank is doing, in a file that the launcher reads when the rank can no longer say it."""

import json
import mmap
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

LAUNCHER_PID = "REDUCEBENCH_LAUNCHER_PID"
"""Environment variable by which a rank knows its launcher; unset where the user starts the ranks, also by hand once more."""

_SIZE = 4096
_PHASE = 32


@dataclass(frozen=True)
class RankStatus:
    """One rank as its file shows it."""

    rank: int
    pid: int
    host: str
    case: str = ""
    """case_id, or what is done outside any case."""
    done: int = 0
    """Cases finished."""
    phase: str = ""
    ended: str = ""
    """Empty while the rank works; then `done`, `refused`, `error`, `lost its peers`, `terminated` or `orphaned`."""
    words: str = ""
    """The rank's last words: the message of the error that ended it."""
    reached: dict[str, float] = field(default_factory=dict)
    """Phase to when it was first entered, in seconds of the host's monotonic clock; as known when a case begins or ends."""


class RankState:
    """A rank's own file. `enter` is called between the phases of a sample, so it only touches mapped memory (~0.2 us)."""

    def __init__(self, path: Path, status: RankStatus) -> None:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)  # a full disk is an error here, and no SIGBUS later
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.status = status
        self._reached: dict[str, float] = {}
        self.update()

    def enter(self, phase: str) -> None:
        """Note the phase that begins."""
        if phase not in self._reached:
            self._reached[phase] = time.monotonic()
        self._map[:_PHASE] = phase.encode()[:_PHASE].ljust(_PHASE)

    def update(self, **changes: object) -> None:
        """Note everything but the phase."""
        self.status = RankStatus(**{**asdict(self.status), **changes, "reached": dict(self._reached)})
        room = _SIZE - _PHASE
        record = asdict(self.status)
        while len(text := json.dumps(record).encode()) > room:
            record["words"] = record["words"][: len(record["words"]) // 2]
        self._map[_PHASE:] = text.ljust(room)


def read_rank_status(path: Path) -> RankStatus | None:
    """What the file says; None when it is missing, or caught half written."""
    try:
        raw = path.read_bytes()
        record = json.loads(raw[_PHASE:])
        return RankStatus(**{**record, "phase": raw[:_PHASE].decode(errors="replace").strip(" \0")})
    except (OSError, ValueError, TypeError):
        return None


def process_start(pid: int) -> str:
    """The kernel's start time of a process, which tells it from a later one of the same pid; empty when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else fields[18]
