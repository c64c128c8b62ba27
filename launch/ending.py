"""Ending a world: its processes, and every rank that they have brought up, whoever is its parent now."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil

from harness.schema.processes import UNSEEN, all_processes
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.run_dir import RunDir
from launch.rest import POLL_S

PATIENCE_S = 5.0
"""From SIGTERM to SIGKILL."""

Process = subprocess.Popen[bytes]


def end(processes: Sequence[Process], run_dir: RunDir, ordered: str = "") -> None:
    """End the processes and every rank that this launcher has on this machine: SIGCONT and SIGTERM, then SIGKILL.

    ordered: the world that supervisors on other hosts are told to end; empty: it has ended well.
    """
    if ordered:
        with suppress(OSError):  # a full disk keeps no rank alive
            run_dir.ranks.order_end(ordered)
    _let_go([process for process in processes if process.stdin])
    for number in (signal.SIGCONT, signal.SIGTERM):
        _signal(processes, number)
    _until_gone(lambda: any(process.poll() is None for process in processes) or bool(own_ranks()), PATIENCE_S)
    _signal(processes, signal.SIGKILL)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):  # one that waits for a dead disk can be ended by nobody
            process.wait(PATIENCE_S)


def _let_go(leashed: Sequence[Process]) -> None:
    """Supervisors on other hosts end their ranks when their input ends; that takes them PATIENCE_S at most."""
    for process in leashed:
        with suppress(OSError):
            assert process.stdin
            process.stdin.close()
    _until_gone(lambda: any(process.poll() is None for process in leashed), PATIENCE_S + 2)


def _until_gone(living: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and living():
        time.sleep(POLL_S / 4)


def _signal(processes: Sequence[Process], number: signal.Signals) -> None:
    for pid in [*own_ranks(), *(process.pid for process in processes if process.poll() is None)]:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def own_ranks() -> set[int]:
    """Ranks of this process that live, whether they have reported yet or not, and whoever is their parent now."""
    return {process.pid for process in all_processes() if _is_own_rank(process)}


def _is_own_rank(process: psutil.Process) -> bool:
    try:
        return "harness.rank" in process.cmdline() and process.environ().get(LAUNCHER_PID) == str(os.getpid())
    except UNSEEN:
        return False
