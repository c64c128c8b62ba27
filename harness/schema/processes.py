"""Processes of this machine, by psutil: which of them live, and which are stopped.

A process that cannot be looked at counts as ended, as one of another user under a strict hidepid.
"""

import os
from collections.abc import Iterator

import psutil

UNSEEN = (psutil.Error, OSError, ValueError)
"""Errors of a look at a process: ValueError is that of a negative pid, which a damaged file may contain."""
_GONE = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_NAME = 15
"""Largest length of the kernel's name of a process, in bytes. psutil completes longer ones from the command line, where
secrets may stand."""


def find(pid: int) -> psutil.Process | None:
    """Return the living process of this pid; None if there is none, or one that has ended and awaits its parent."""
    try:
        process = psutil.Process(pid)
        return process if process.status() not in _GONE else None
    except UNSEEN:
        return None


def is_alive(pid: int) -> bool:
    """True if a process of this pid lives."""
    return find(pid) is not None


def still_lives(process: psutil.Process | None) -> bool:
    """True if a process that was found still lives; a later one of the same pid, with another start time, is not the same."""
    try:
        return process is not None and process.is_running() and process.status() not in _GONE
    except UNSEEN:
        return False


def is_stopped(pid: int) -> bool:
    """True if a signal has stopped the process of this pid."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except UNSEEN:
        return False


def name_of(process: psutil.Process) -> str:
    """Return the kernel's name of a process. Raise one of UNSEEN."""
    return os.fsdecode(os.fsencode(process.name())[:_NAME])


def all_processes() -> Iterator[psutil.Process]:
    """Return all visible processes. psutil.process_iter is not used: it caches a process after its pid was reused."""
    for pid in psutil.pids():
        try:
            yield psutil.Process(pid)
        except UNSEEN:
            continue


def with_descendants(process: psutil.Process) -> set[int]:
    """Pids of a process and of all that descend from it."""
    try:
        return {process.pid, *(child.pid for child in process.children(recursive=True))}
    except UNSEEN:
        return {process.pid}
