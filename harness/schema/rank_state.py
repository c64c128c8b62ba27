"""RankState: what a rank is doing, in a file that the launcher reads when the rank can no longer say it."""

import json
import mmap
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.schema.reading import read_bytes
from harness.schema.refusal import RefusedError
from harness.schema.shape import MISSING, REAL, TEXT, WHOLE, Record
from harness.schema.whole_files import open_in_place, open_new

LAUNCHER_PID = "REDUCEBENCH_LAUNCHER_PID"
"""Environment variable by which a rank knows its launcher; unset where the user starts the ranks, also by hand once more."""

ANSWERS, SILENT, DEAD, UNREACHABLE, STUCK = "answers", "silent", "dead", "unreachable", "stuck"
"""What ranks find each other to be."""

_SIZE = 4096
_PHASE = 32


@dataclass(frozen=True)
class RankStatus:
    """One rank as its file shows it."""

    rank: int
    pid: int
    host: str
    machine: str = ""
    """Where the pid means something: equal for processes that see each other."""
    case: str = ""
    """case_id, or what is done outside any case."""
    done: int = 0
    """Cases finished."""
    phase: str = ""
    ended: str = ""
    """Empty while the rank works; then `done`, `refused`, `error`, `unwritable` (the disk), `lost` (other ranks), `waited` (too
    long, in a collective of the user's code), `terminated` or `orphaned`; the launcher writes `died` of a rank that is gone
    without a word, and `stopped` of one that stood still."""
    words: str = ""
    """The rank's last words: the message of the error that ended it."""
    at: float = 0.0
    """When it ended, in seconds since the epoch."""
    lost: dict[str, str] = field(default_factory=dict)
    """Other ranks that did not answer when this one asked them, and how: silent, dead, unreachable or stuck."""
    places: dict[str, str] = field(default_factory=dict)
    """Stuck ranks to the line of the user's code at which they stand."""
    reached: dict[str, float] = field(default_factory=dict)
    """Phase to when it was first entered, in seconds of the host's monotonic clock; as known when a case begins or ends."""


_STATUS = Record(
    {
        **dict.fromkeys(("rank", "pid", "done"), WHOLE),
        **dict.fromkeys(("host", "machine", "case", "phase", "ended", "words"), TEXT),
        "at": REAL,
        "lost": Record({}, TEXT),
        "places": Record({}, TEXT),
        "reached": Record({}, REAL),
    }
)


class RankState:
    """A rank's own file, RUN/ranks/<rank>.state.

    `enter` is called between the phases of a sample, so it only touches mapped memory (~0.2 us).
    """

    def __init__(self, path: Path, status: RankStatus) -> None:
        with open_new(path, path.parent.parent) as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)  # a full disk is an error here, and no SIGBUS later
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.status, self.path = status, path
        self.phase, self.since = "", time.monotonic()
        """What is being done, and since when."""
        self._reached: dict[str, float] = {}
        self._updating = threading.Lock()
        self.update()

    def enter(self, phase: str) -> None:
        """Note the phase that begins."""
        if self.status.ended:  # the watching thread has recorded where this rank ended
            return
        self.phase, self.since = phase, time.monotonic()
        if phase not in self._reached:
            self._reached[phase] = self.since
        self._map[:_PHASE] = phase.encode()[:_PHASE].ljust(_PHASE)

    def update(self, **changes: object) -> None:
        """Note everything but the phase. The first ending stays: what comes after it, such as a SIGTERM, changes nothing."""
        with self._updating:  # the main thread and the watching one may end at the same time
            if self.status.ended:
                return
            at = {"at": time.time()} if changes.get("ended") else {}
            self.status = RankStatus(**{**asdict(self.status), **at, **changes, "reached": dict(self._reached)})
            self._map[_PHASE:] = _encoded(self.status)
            self._map.flush()  # another host may look


def _encoded(status: RankStatus) -> bytes:
    room, record = _SIZE - _PHASE, asdict(status)
    while len(text := json.dumps(record).encode()) > room:
        record["words"] = record["words"][: len(record["words"]) // 2]
        record["lost"], record["places"] = dict(list(record["lost"].items())[:32]), dict(list(record["places"].items())[:8])
    return text.ljust(room)


def read_rank_status(path: Path) -> RankStatus | None:
    """Content of the file; None if it is missing, half written, or has another format."""
    try:
        raw = read_bytes(path, folders=1, most=_SIZE)
        record = {**_read_record(raw[_PHASE:]), "phase": raw[:_PHASE].decode(errors="replace").strip(" \0")}
        return RankStatus(**record)
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _read_record(raw: bytes) -> dict[str, Any]:
    """Check the fields of a RankStatus and their types. Raise ValueError."""
    problems: list[str] = []
    record = _STATUS.fit(json.loads(raw), "", problems)
    if problems or record is MISSING:
        raise ValueError("; ".join(problems))
    return {key: value for key, value in record.items() if value is not None}


def note_death(path: Path, status: RankStatus, words: str, ended: str = "died") -> None:
    """What the rank cannot say any more. Only for a process that is gone: while it lives, the file is its own."""
    with os.fdopen(open_in_place(path, path.parent.parent, os.O_RDWR), "r+b") as file:
        file.write(status.phase.encode()[:_PHASE].ljust(_PHASE))
        file.write(_encoded(replace(status, ended=ended, words=words, at=status.at or time.time())))


def this_machine() -> str:
    """Equal for processes that see each other's pids: the kernel's boot, the pid namespace, and the host's name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def check_proc(proc: Path = Path("/proc")) -> None:
    """Raises RefusedError where the kernel's /proc is missing: a process that lives could not be told from one that is gone."""
    if not (proc / "self" / "stat").exists():
        raise RefusedError(
            f"/proc is not mounted on {socket.gethostname()}: processes are watched there; try mount -t proc proc /proc, or a "
            "container that has it"
        )
