"""Starts the processes of a world, watches its ranks, and ends them: no process outlives the launcher's wait."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from harness.schema.rank_state import this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.deaths import note_deaths, note_stops
from launch.ending import Process, end
from launch.patience import SEEN_S, Ended, Limits, Patience, stopped_ones
from launch.rest import POLL_S, rest

_REST = 10.0
"""Times as long as a look took: thousands of ranks' files are looked at less often."""
_LAST_POLL_S = 0.02
"""Poll interval once all ranks have ended: only the processes that started them remain, and nothing is measured any more."""
_LONGEST_S = 5.0
"""Of a rest: a look may take long for once, on a machine that was busy."""
Watch = Callable[[], None]
"""Called again and again while the ranks work."""


@dataclass(frozen=True)
class Start:
    """One process that brings ranks up: torchrun here, or what starts it on another host."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: str
    """Under which name it logs."""
    leash: bool = False
    """Whether it ends when its standard input does."""


def run_world(
    starts: Sequence[Start], run_dir: RunDir, world: str, watch: Watch, limits: Limits, received: Sequence[str]
) -> Ended:
    """Run the processes to their end, and end every rank of them. `world` is told from others by its name.

    received: signals that this process is sent meanwhile. Raises RefusedError when a process cannot be started.
    """
    ended, processes, well = Ended(), list[Process](), False
    try:
        for start in starts:
            processes.append(_started(start, run_dir))
        well = _wait(processes, run_dir, world, watch, received, limits, ended)
        ended.failed = {start.log: one.returncode for start, one in zip(starts, processes, strict=True) if one.returncode}
        with suppress(OSError):  # on a full disk they are known to this host alone
            note_deaths(run_dir)
        stopped = stopped_ones(run_dir.ranks.statuses())
    finally:
        ended.at = time.monotonic()
        end(processes, run_dir, world if not well else "")
    with suppress(OSError):
        note_stops(run_dir, stopped)
    return ended


def _started(start: Start, run_dir: RunDir) -> Process:
    try:
        run_dir.ranks.note_start(start.log, start.command)
        with run_dir.ranks.open_log(start.log) as log:
            # A session of its own: Ctrl-C reaches the launcher alone, which ends the ranks in order.
            return subprocess.Popen(
                start.command,
                env=dict(start.environment),
                stdin=subprocess.PIPE if start.leash else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
    except FileNotFoundError as error:
        raise RefusedError(f"cannot start the ranks: there is no program {start.command[0]}") from error
    except OSError as error:
        raise RefusedError(f"cannot start the ranks: {start.command[0]}: {error.strerror or error}") from error


def settle(run_dir: RunDir, ended: Ended) -> None:
    """Wait for the last words of ranks on other hosts, which their own supervisors write where they cannot."""
    deadline, here = ended.at + SEEN_S, this_machine()
    while time.monotonic() < deadline and any(not one.ended and one.machine != here for one in run_dir.ranks.statuses()):
        time.sleep(POLL_S)


def _wait(
    processes: Sequence[Process],
    run_dir: RunDir,
    world: str,
    watch: Watch,
    received: Sequence[str],
    limits: Limits,
    ended: Ended,
) -> bool:
    """Whether the world came to its end by itself, and as it should."""
    patience = Patience(limits, ended)
    while not received and not _over(processes, run_dir):
        began = time.monotonic()
        watch()
        statuses = run_dir.ranks.statuses()
        if (world and run_dir.ranks.ordered_end() == world) or patience.is_at_its_end(statuses, processes):
            return False
        poll_s = _LAST_POLL_S if statuses and all(status.ended for status in statuses) else POLL_S
        rest(min(max(poll_s, _REST * (time.monotonic() - began)), _LONGEST_S), received)
    return not received and not any(process.returncode for process in processes)


def _over(processes: Sequence[Process], run_dir: RunDir) -> bool:
    """Whether all processes have ended; and, where a person started others, all ranks."""
    if any(process.poll() is None for process in processes):
        return False
    return any(process.returncode for process in processes) or all(status.ended for status in run_dir.ranks.statuses())
