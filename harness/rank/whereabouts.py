"""Place in the code at which a rank stands: the line of the user's own code, and the collective that it called there."""

import linecache
import re
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

_HARNESS = str(Path(__file__).parents[1])
_PACKAGES = ("site-packages", "dist-packages")
_STDLIB = sysconfig.get_paths()["stdlib"]
_TIMED_OUT = re.compile(
    r"Timed out waiting \d+ms|timed out in monitoredBarrier|[Ww]ait timeout after \d+ms|collective operation timeout"
)
_CLOSED = re.compile(r"Connection closed by peer|pair closure|Connection reset by peer")
_WRAPPER = "wrapper"
"""torch's function around each collective, which notes errors."""


@dataclass(frozen=True)
class Place:
    """Line of the user's code at which a thread stands."""

    line: str = ""
    """`model.py:27 in forward`, the innermost line that is neither torch's nor the standard library's nor reducebench's. An
    installed package's counts only where there is no other."""
    collective: str = ""
    """torch's function in which that line waits: `all_reduce`. Empty: none, or one that reducebench itself called."""
    key: tuple[tuple[int, int], ...] = ()
    """Equal while the thread does not move."""

    def __str__(self) -> str:
        return f"{self.collective} at {self.line}" if self.collective else self.line


def place_now() -> Place:
    """Return the place at which the main thread stands."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = list(_outwards(frame))
    return _place([(one.f_code, one.f_lineno) for one in frames], tuple((id(one.f_code), one.f_lasti) for one in frames))


def timed_out(error: BaseException) -> bool:
    """Return True for what gloo and torch raise where other ranks do not take part in a collective in time."""
    return isinstance(error, RuntimeError) and bool(_TIMED_OUT.search(str(error)))


def was_closed(error: BaseException) -> bool:
    """Return True for what gloo raises where another rank has closed their connection: it has failed before."""
    return isinstance(error, RuntimeError) and bool(_CLOSED.search(str(error)))


def place_of(error: BaseException) -> Place:
    """Return the place at which it was raised."""
    return _place([(one.f_code, line) for one, line in reversed(list(traceback.walk_tb(error.__traceback__)))])


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(calls: list[tuple[CodeType, int]], key: tuple[tuple[int, int], ...] = ()) -> Place:
    """`calls` from the innermost outwards."""
    collective, torch, in_package = "", _torch(), Place(key=key)
    for depth, (code, line) in enumerate(calls):
        file = code.co_filename
        if file.startswith(f"{torch}/distributed/"):
            collective = code.co_name if code.co_name != _WRAPPER else collective
        elif file.startswith((f"{torch}/", "<")) or _is_stdlib(file):
            continue
        elif file.startswith(f"{_HARNESS}/"):
            if collective:  # the deadline of its group holds, and what it raises then
                break
        else:
            own_wait = not depth and ".wait(" in linecache.getline(file, line)  # of a collective's Work, no Python function
            place = Place(f"{Path(file).name}:{line} in {code.co_name}", collective or "wait" * own_wait, key)
            if not any(packages in file for packages in _PACKAGES):
                return place
            in_package = in_package if in_package.line else place
    return in_package


def _torch() -> str:
    """Folder of the package; a rank watches before it imports torch."""
    file = getattr(sys.modules.get("torch"), "__file__", None)
    return str(Path(file).parent) if file else "<no torch>"


def _is_stdlib(file: str) -> bool:
    return file.startswith(_STDLIB) and not any(packages in file for packages in _PACKAGES)


_MOVED_S = 1e-3
"""CPU seconds between two looks. A thread that waits in one call takes none; one that comes to that line anew takes more."""


@dataclass
class Standstill:
    """For how long the main thread has waited in one call, as far as looks at it tell."""

    place: Place = field(default_factory=Place)
    since: float = field(default_factory=time.monotonic)
    _cpu_s: float = 0.0

    def look(self) -> Place:
        """Note where the main thread stands now."""
        place, cpu_s = place_now(), _cpu_s()
        if place.key != self.place.key or cpu_s - self._cpu_s > _MOVED_S:
            self.place, self.since = place, time.monotonic()
        self._cpu_s = cpu_s
        return self.place

    @property
    def seconds(self) -> float:
        """Since the first of the looks that found it here."""
        return time.monotonic() - self.since


def _cpu_s() -> float:
    """CPU time of the main thread."""
    return time.clock_gettime(time.pthread_getcpuclockid(threading.main_thread().ident or 0))
