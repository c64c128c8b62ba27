"""The guard of a rank: no rank outlives those who started it, and one that is told to end says so first."""

import os
import select
import signal
import threading
from collections.abc import Callable

from harness.schema.rank_state import process_start

POLL_S = 0.5
_ENDING = {signal.SIGTERM, signal.SIGINT}
"""What torchrun hands on to the ranks when it is told to end."""

Leave = Callable[[str], None]
"""Called from the guard's thread with why the rank must end: it notes it, and does not return to the measurement."""


def watch(leave: Leave, launcher_pid: int) -> None:
    """Start the thread that calls `leave` on SIGTERM or SIGINT, or once the parent or the launcher (0: none) is gone.

    A Python signal handler would wait for the main thread, which may stand in a collective for ever; the byte that the
    interpreter's C handler writes to a pipe reaches the thread at once. Call from the main thread.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    watched = {pid: process_start(pid) for pid in (os.getppid(), launcher_pid) if pid}
    threading.Thread(target=_watch, args=(leave, read_end, watched), name="guard", daemon=True).start()


def _watch(leave: Leave, read_end: int, watched: dict[int, str]) -> None:
    while True:
        ready, _, _ = select.select([read_end], [], [], POLL_S)
        if ready and _ENDING & set(os.read(read_end, 64)):
            leave("terminated")
        if any(not start or process_start(pid) != start for pid, start in watched.items()):
            leave("orphaned")
