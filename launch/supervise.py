"""Starts the processes of a world, watches its ranks, and ends them: no process outlives the launcher's wait."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from harness.schema.rank_state import LAUNCHER_PID, RankStatus, process_start, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.deaths import note_deaths, note_stops

POLL_S = 0.2
_REST = 10.0
"""Times as long as a look took: thousands of ranks' files are looked at less often."""
PATIENCE_S = 5.0
"""From SIGTERM to SIGKILL."""
TROUBLE_S = 3.0
"""How long the others may take to end once a rank is gone: torchrun is told, and they note where they were."""
SEEN_S = 8.0
"""Until what another host wrote last is seen here, on a shared file system."""
FINISHED_S = 30.0
"""How long processes may take to end once all their ranks have."""

Process = subprocess.Popen[bytes]
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
        stopped = _stopped(run_dir.rank_statuses())
    finally:
        ended.at = time.monotonic()
        end(processes, run_dir, world if not well else "")
    with suppress(OSError):
        note_stops(run_dir, stopped)
    return ended


def _started(start: Start, run_dir: RunDir) -> Process:
    try:
        with run_dir.log(start.log).open("ab") as log:
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
    while time.monotonic() < deadline and any(not one.ended and one.machine != here for one in run_dir.rank_statuses()):
        time.sleep(POLL_S)


@contextmanager
def signals_noted() -> Iterator[list[str]]:
    """SIGINT, SIGTERM and SIGHUP to this process end up as names in the list, in the order in which they come."""
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    patience = _Patience(limits, ended)
    while not received and not _over(processes, run_dir):
        began = time.monotonic()
        watch()
        statuses = run_dir.rank_statuses()
        if (world and run_dir.ordered_end() == world) or patience.is_at_its_end(statuses, processes):
            return False
        time.sleep(max(POLL_S, _REST * (time.monotonic() - began)))
    return not received and not any(process.returncode for process in processes)


@dataclass
class _Patience:
    """With ranks that do not come, do not move, or are gone."""

    limits: Limits
    ended: Ended
    _began: float = field(default_factory=time.monotonic)
    _arrived: bool = False
    _since: dict[str, float] = field(default_factory=dict)
    """Since when something has been so without a break."""
    _stopped_since: dict[int, float] = field(default_factory=dict)

    def is_at_its_end(self, statuses: Sequence[RankStatus], processes: Sequence[Process]) -> bool:
        now = time.monotonic()
        all_ended = 0 < self.limits.ranks <= len(statuses) and all(status.ended for status in statuses)
        all_gone = not any(process.poll() is None for process in processes)
        self._arrived = self._arrived or len(statuses) >= self.limits.ranks
        self.ended.late = not self._arrived and now - self._began > self.limits.arrival_s
        self._stopped_since = {one.rank: self._stopped_since.get(one.rank, now) for one in _stopped(statuses)}
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


def _over(processes: Sequence[Process], run_dir: RunDir) -> bool:
    """Whether all processes have ended; and, where a person started others, all ranks."""
    if any(process.poll() is None for process in processes):
        return False
    return any(process.returncode for process in processes) or all(status.ended for status in run_dir.rank_statuses())


def _stopped(statuses: Sequence[RankStatus]) -> list[RankStatus]:
    """Those of this machine that a signal has stopped."""
    here = this_machine()
    return [status for status in statuses if status.machine == here and _state(status.pid) == "T"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _in_trouble(statuses: Sequence[RankStatus], processes: Sequence[Process]) -> bool:
    """A rank has ended otherwise than well, or one of this machine is gone without a word; or a process failed."""
    here = this_machine()
    return any(process.poll() for process in processes) or any(
        status.ended not in ("", "done") or (not status.ended and status.machine == here and not process_start(status.pid))
        for status in statuses
    )


def end(processes: Sequence[Process], run_dir: RunDir, ordered: str = "") -> None:
    """End the processes and every rank that this launcher has on this machine: SIGCONT and SIGTERM, then SIGKILL.

    ordered: the world that supervisors on other hosts are told to end; empty: it has ended well.
    """
    if ordered:
        with suppress(OSError):  # a full disk keeps no rank alive
            run_dir.order_end(ordered)
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
    mark = f"{LAUNCHER_PID}={os.getpid()}".encode()
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_rank(entry, mark)}


def _is_rank(process: Path, mark: bytes) -> bool:
    try:
        is_rank = b"harness.rank" in (process / "cmdline").read_bytes().split(b"\0")
        return is_rank and mark in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
