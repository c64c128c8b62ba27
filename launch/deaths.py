"""Who ended a world before its time, and how: read from the ranks' own records, which outlive them.

torchrun's root cause is no witness: of a rank that is stopped, or that leaves with status 0, it names the survivor.
"""

import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from harness.schema.processes import is_alive
from harness.schema.rank_state import (
    DEAD,
    SILENT,
    STUCK,
    UNREACHABLE,
    RankStatus,
    note_death,
    read_rank_status,
    this_machine,
)
from harness.schema.run_dir import RunDir
from harness.schema.text import plain
from launch.last_words import end_of, why_it_left

_EXIT = re.compile(r"\(exitcode: (-?\d+)\) local_rank: \d+ \(pid: (\d+)\)")


@dataclass(frozen=True)
class Death:
    """One rank, or one pair of them, that brought a world to its end."""

    rank: int | None
    """None: no rank, but a process that brings them up."""
    host: str
    pid: int
    case: str
    phase: str
    how: str
    """What became of it, after "rank 1 (pid 7 on node)"; of a process, all that there is to say."""
    unwritable: bool = False

    def __str__(self) -> str:
        return self.how if self.rank is None else f"rank {self.rank} (pid {self.pid} on {self.host}) {self.how}"

    @property
    def record(self) -> dict[str, Any]:
        """Entry for failures.json."""
        return asdict(self)


def note_deaths(run_dir: RunDir) -> None:
    """Write down, for other hosts and for later, which ranks of this machine are gone without a word."""
    here = this_machine()
    for status in run_dir.ranks.statuses():
        if not status.ended and status.machine == here and not is_alive(status.pid):
            _note_unless_ended(run_dir, status)


def _note_unless_ended(run_dir: RunDir, status: RankStatus) -> None:
    """Its last word may have come between the look at its file and the look for its process."""
    state = run_dir.ranks.state(status.rank)
    now = read_rank_status(state)
    if now is None or not now.ended:
        note_death(state, status, _exit(run_dir, status.pid))


def note_stops(run_dir: RunDir, stopped: Sequence[RankStatus]) -> None:
    """Write down which ranks stood still, and where: waked to be ended, they have gone on for a moment since.

    A rank that had ended before it was stopped keeps that ending.
    """
    for status in [status for status in stopped if not status.ended]:
        note_death(run_dir.ranks.state(status.rank), status, "", ended="stopped")


def _exit(run_dir: RunDir, pid: int) -> str:
    """How the process left, where torchrun's log tells."""
    for code, of in _EXIT.findall(run_dir.ranks.said_by_torchrun()):
        if int(of) == pid:
            return _named(int(code))
    return ""


def _named(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return name + (", from another process, or from the kernel where memory ran out: see dmesg" if name == "SIGKILL" else "")


def deaths(run_dir: RunDir, processes: Mapping[str, int] = MappingProxyType({})) -> list[Death]:
    """The culprits of a world that has ended, the surest kind alone: what the others say of a lost peer follows from it.

    processes: those that bring ranks up and had ended by themselves, by the names of their logs, to their return codes.
    torchrun leaves with 1 when a rank has failed, or was told to end; with anything else it is itself what failed.
    """
    statuses = run_dir.ranks.statuses()
    if any(status.ended == "refused" for status in statuses) or (statuses and all(one.ended == "done" for one in statuses)):
        return []
    own = [_failed(run_dir, name, code) for name, code in processes.items() if code != 1]
    return (
        _surest((_still, _died, _links, _missed, _waited, _unwritable), run_dir, statuses)
        or own  # before what ranks raised: torchrun keeps their store, so that its own death is an error in each of them
        or _surest((_first, _told), run_dir, statuses)
        or [_failed(run_dir, name, code) for name, code in processes.items()]
    )


Statuses = Sequence[RankStatus]
Kind = Callable[[RunDir, Statuses], Iterator[Death]]


def _surest(kinds: Sequence[Kind], run_dir: RunDir, statuses: Statuses) -> list[Death]:
    """What the first kind finds that finds any."""
    return next((found for kind in kinds if (found := list(kind(run_dir, statuses)))), [])


def _still(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """Ranks that took a connection and said nothing, that held the others up, or that the launcher saw stopped."""
    found = _found(statuses)
    for status in statuses:
        if status.ended == "stopped" or SILENT in found[status.rank]:
            yield _death(run_dir, status, "does not answer: it is stopped, or hangs")
        elif STUCK in found[status.rank]:
            place = next((seen for one in statuses if (seen := one.places.get(str(status.rank)))), "")
            how = f"answers, but does not go on: it hangs{f' at {place}' if place else ''}"
            advice = "; try a larger deadline_s if it is still loading data" if status.phase == "assemble" else ""
            yield _death(run_dir, status, how, advice)


def _waited(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """The first rank that waited too long in a collective that its own code called; its words say where the others were."""
    waited = sorted((status for status in statuses if status.ended == "waited"), key=lambda status: status.at)
    for status in waited[:1]:
        yield _death(run_dir, status, status.words)


def _died(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    for status in statuses:
        if status.ended == "died":
            yield _death(run_dir, status, "died without a word" + (f" ({status.words})" if status.words else ""))


def _missed(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """Ranks of which nobody could write down that they are gone: their host is gone as well."""
    found, others_ended, here = _found(statuses), any(status.ended for status in statuses), this_machine()
    for status in statuses:  # one of this machine that has no last words was ended by its launcher, in the end by force
        if not status.ended and (DEAD in found[status.rank] or (others_ended and status.machine != here)):
            yield _death(run_dir, status, "is gone without a word, and so is who supervised it")


def _unwritable(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    for status in statuses:
        if status.ended == "unwritable":
            yield _death(run_dir, status, f"could not write: {status.words}")


def _first(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """The first that could not go on; the others followed. Who was told to end, or refused, brought no world down."""
    ended = sorted((status for status in statuses if status.ended in ("error", "lost")), key=lambda status: status.at)
    for status in ended[:1]:
        yield _death(run_dir, status, f"ended with {status.words}" if status.words else f"was {status.ended}")


def _told(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """The first that was told to end, by nobody of ours."""
    ended = sorted((status for status in statuses if status.ended not in ("", "done")), key=lambda status: status.at)
    yield from (_death(run_dir, status, f"was {status.ended}") for status in ended[:1])


def _failed(run_dir: RunDir, name: str, code: int) -> Death:
    how = _named(code).replace("exit status", "left with status") if code >= 0 else f"was ended by {_named(code)}"
    return Death(None, socket.gethostname(), 0, "", "", plain(f"{name} {how}{why_it_left(run_dir, name)}"))


def _found(statuses: Statuses) -> dict[int, set[str]]:
    """Rank to what others found it to be."""
    found: dict[int, set[str]] = {status.rank: set() for status in statuses}
    for status in statuses:
        for rank, how in status.lost.items():
            found.setdefault(int(rank), set()).add(how)
    return found


def _links(run_dir: RunDir, statuses: Statuses) -> Iterator[Death]:
    """Pairs that did not reach each other; each is told once."""
    by_rank = {status.rank: status for status in statuses}
    for status in statuses:
        for other in sorted(int(rank) for rank, how in status.lost.items() if how == UNREACHABLE):
            both = other in by_rank and by_rank[other].lost.get(str(status.rank)) == UNREACHABLE
            if both and other < status.rank:
                continue
            where = f" on {by_rank[other].host}" if other in by_rank else ""
            yield _death(
                run_dir,
                status,
                f"and rank {other}{where} cannot reach each other: the link between their hosts is down, or one of them is",
            )


def _death(run_dir: RunDir, status: RankStatus, how: str, advice: str = "") -> Death:
    last = _last_line(run_dir, status.rank) if status.ended == "died" else ""
    place = f"in case {status.case}" if status.case else f"{'after the last' if status.done else 'before the first'} case"
    words = f"; its log ends: {last}" if last else ""
    return Death(
        rank=status.rank,
        host=status.host,
        pid=status.pid,
        case=status.case,
        phase=status.phase,
        how=plain(f"{how}, {place}, phase {status.phase}{words}{advice}"),
        unwritable=status.ended == "unwritable",
    )


def _last_line(run_dir: RunDir, rank: int) -> str:
    return end_of(run_dir.ranks.said(rank))
