"""Who else used the CPUs: processes, and the time that each has taken between two looks at them."""

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psutil

from harness.schema.processes import UNSEEN, all_processes, name_of, with_descendants

_LEAST = 0.01
"""Of one CPU: who took less of it is not named."""
_MOST = 20
"""Processes that are named, the busiest first."""


@dataclass(frozen=True)
class Process:
    """One process at one moment. Its name is the kernel's, never its command line, which may hold what is nobody's business."""

    name: str
    identity: object
    """Equal at two moments only for the same process, and not for a later one of the same pid."""
    cpu_s: float
    """CPU seconds so far, without those of its children."""


@dataclass(frozen=True)
class Look:
    """Every process that can be seen, and the time of all CPUs since the machine started."""

    at: float
    processes: Mapping[int, Process]
    busy_s: float | None
    stolen_s: float | None
    """Taken by the hypervisor for other machines."""


def look() -> Look:
    """Read the processes of now: 0.1 ms each."""
    busy, stolen = _cpus()
    try:
        seen = {process.pid: found for process in all_processes() if (found := _seen(process))}
    except OSError:  # no /proc
        seen = {}
    return Look(monotonic(), seen, busy, stolen)


def between(before: Look, after: Look, own: set[int]) -> dict[str, Any]:
    """CPU seconds: of all, of the `own` processes, stolen, and of each of the others that took notable time."""
    window = after.at - before.at
    taken = {pid: process.cpu_s - _earlier(before, pid, process) for pid, process in after.processes.items()}
    others = [(pid, seconds) for pid, seconds in taken.items() if pid not in own and seconds > _LEAST * window]
    busiest = sorted(others, key=lambda other: other[1], reverse=True)[:_MOST]
    return {
        "window_s": round(window, 3),
        "busy_s": _difference(before.busy_s, after.busy_s),
        "stolen_s": _difference(before.stolen_s, after.stolen_s),
        "own_s": round(sum(seconds for pid, seconds in taken.items() if pid in own), 2),
        "others": [{"pid": pid, "name": after.processes[pid].name, "cpu_s": round(seconds, 2)} for pid, seconds in busiest],
    }


def family(launcher: int | None) -> set[int]:
    """Pids of the run's own processes on this host: the launcher, and all descendants of this rank's parent.

    The parent has started the ranks. If it is in another pid namespace, so are those of processes that may be other ranks'.
    """
    parent = psutil.Process().parent()
    tops = [parent] if parent else [process for process in all_processes() if _comes_from_outside(process)]
    return {*([] if launcher is None else [launcher]), *(pid for top in tops for pid in with_descendants(top))}


def _comes_from_outside(process: psutil.Process) -> bool:
    try:
        return bool(process.ppid() == 0)
    except UNSEEN:
        return False


def _seen(process: psutil.Process) -> Process | None:
    try:
        with process.oneshot():
            times = process.cpu_times()
            return Process(name_of(process), process, times.user + times.system)
    except UNSEEN:
        return None


def _cpus() -> tuple[float | None, float | None]:
    try:
        times = psutil.cpu_times()
        busy = times.user + times.nice + times.system + times.irq + times.softirq
        return busy, times.steal
    except (OSError, ValueError, AttributeError, TypeError):  # no /proc, or none when psutil was imported
        return None, None


def _earlier(before: Look, pid: int, process: Process) -> float:
    """What the process had taken at the first look; 0 where it has started since."""
    same = before.processes.get(pid)
    return same.cpu_s if same and same.identity == process.identity else 0.0


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else round(after - before, 2)
