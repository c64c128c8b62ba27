"""What became of a run, read from its directory: exit status 0, 1 or 2, and what a person must be told."""

import socket
from dataclasses import dataclass

from harness.schema.matrix import expected_files
from harness.schema.rank_state import RankStatus, process_start
from harness.schema.run_dir import RunDir

SUCCESS, FAILURE, REFUSAL = 0, 1, 2


@dataclass(frozen=True)
class Verdict:
    """Exit status, and lines for the user."""

    status: int
    lines: tuple[str, ...] = ()
    stopped: bool = False
    """A signal to the launcher cut the run short: whoever sent it wants no further one."""


def judge(run_dir: RunDir, cut_short_by: str, launch: int = 0) -> Verdict:
    """The verdict on a launch whose processes have all ended; `cut_short_by` is the signal that ended it, or ""."""
    statuses = run_dir.rank_statuses()
    refused = [status for status in statuses if status.ended == "refused"]
    if refused:
        return Verdict(REFUSAL, (refused[0].words,))
    expected = expected_files(run_dir.config(), launch)
    missing = run_dir.missing(launch)
    if not missing and all(status.ended == "done" for status in statuses):
        return Verdict(SUCCESS, stopped=bool(cut_short_by))
    total = sum(map(len, expected.values()))
    where = f" in launch {launch}" if run_dir.config().launches > 1 else ""
    counted = f"{total - len(missing)} of {total} cases{' and probes' * bool(expected['probes'])} are finished and kept{where}"
    if cut_short_by:
        return Verdict(FAILURE, (f"ended by {cut_short_by}: {counted}",), stopped=True)
    return Verdict(FAILURE, (*_culprits(run_dir, statuses), counted))


def _culprits(run_dir: RunDir, statuses: list[RankStatus]) -> list[str]:
    """Ranks gone without a word come first: what the others say of a lost peer follows from it."""
    speechless = [status for status in statuses if not status.ended and not _lives(status)]
    if speechless:
        return [f"{_who(status)} died without a word {_where(status)}" for status in speechless]
    erring = [status for status in statuses if status.ended == "error"]
    if erring:
        return [f"{_who(status)} ended {_where(status)}: {status.words}" for status in erring]
    silent = sorted(set(range(run_dir.config().world_size)) - {status.rank for status in statuses})
    if silent:
        return [f"rank {rank} never reported; see {run_dir.log('torchrun')}" for rank in silent]
    return [f"{_who(status)} was {status.ended} {_where(status)}" for status in statuses if status.ended not in ("", "done")]


def _lives(status: RankStatus) -> bool:
    """A process that was killed and that nobody has waited for yet lives no more."""
    return status.host == socket.gethostname() and bool(process_start(status.pid))


def _who(status: RankStatus) -> str:
    return f"rank {status.rank} (pid {status.pid} on {status.host})"


def _where(status: RankStatus) -> str:
    if status.case:
        return f"in case {status.case}, phase {status.phase}"
    return f"{'after the last' if status.done else 'before the first'} case, phase {status.phase}"
