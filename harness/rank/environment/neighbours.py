"""Who else used the CPUs: processes, and the time that each has taken between two looks at them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from harness.rank.environment.files import text

_TICKS = os.sysconf("SC_CLK_TCK")
_LEAST = 0.01
"""Of one CPU: who took less of it is not named."""
_MOST = 20
"""Processes that are named, the busiest first."""


@dataclass(frozen=True)
class Process:
    """One process at one moment. Its name is the kernel's, never its command line, which may hold what is nobody's business."""

    name: str
    parent: int
    started: int
    """Ticks since the machine started; tells it from a later process of the same pid."""
    cpu_s: float
    """Time that it has taken so far."""


@dataclass(frozen=True)
class Look:
    """Every process that can be seen, and the time of all CPUs since the machine started."""

    at: float
    processes: Mapping[int, Process]
    busy_s: float | None
    stolen_s: float | None
    """Taken by the hypervisor for other machines."""


def look(root: Path = Path("/")) -> Look:
    """Read the processes of now: some 20 us each."""
    folders = [entry for entry in (root / "proc").glob("[0-9]*") if entry.name.isdigit()]
    seen = {int(folder.name): process for folder in folders if (process := _process(folder))}
    busy, stolen = _cpus(root / "proc/stat")
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


def family(processes: Mapping[int, Process], pid: int, launcher: int | None) -> set[int]:
    """The run's own processes on a host: the launcher, and all that come from the parent of `pid`, which started the ranks."""
    children: dict[int, list[int]] = {}
    for child, process in processes.items():
        children.setdefault(process.parent, []).append(child)
    found, waiting = set() if launcher is None else {launcher}, [processes[pid].parent if pid in processes else pid]
    while waiting:
        found.add(one := waiting.pop())
        waiting += children.get(one, [])
    return found


def _process(folder: Path) -> Process | None:
    """Fields are numbered as in proc(5); the name stands in brackets, and may hold some of its own."""
    named, _, rest = (text(folder / "stat") or "").rpartition(")")
    fields = rest.split()
    if len(fields) < 20:
        return None
    user, system, started = int(fields[11]), int(fields[12]), int(fields[19])
    return Process(named.partition("(")[2], int(fields[1]), started, (user + system) / _TICKS)


def _cpus(path: Path) -> tuple[float | None, float | None]:
    words = (text(path) or "").partition("\n")[0].split()[1:9]
    if len(words) < 8:
        return None, None
    user, nice, system, _, _, irq, softirq, stolen = map(int, words)
    return (user + nice + system + irq + softirq) / _TICKS, stolen / _TICKS


def _earlier(before: Look, pid: int, process: Process) -> float:
    """What the process had taken at the first look; 0 where it has started since."""
    same = before.processes.get(pid)
    return same.cpu_s if same and same.started == process.started else 0.0


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else round(after - before, 2)
