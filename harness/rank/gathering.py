"""Gathering: before any process group is made, every rank comes to the store, and asks others on their lifelines.

Who is missing, and which two hosts have no way to each other, is known by name in seconds; a process group would only time out.
Rank 0 alone reads what each of them says, and tells it in one piece: the store answers a few questions a rank, not one a pair.
"""

import json
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store

from harness.rank.lifeline import PATIENCE_S, Lifeline, find_address
from harness.schema.rank_state import ANSWERS

_ASKED = 2
"""Times: one silence may be a rank that does not get the processor for a moment."""
_MARGIN_S = 5.0
"""Until rank 0 has told the others."""


class UnreachableError(Exception):
    """Ranks that never came, or that have no way to each other."""


def gather(store: Store, rank: int, size: int, seconds: float) -> Lifeline:
    """This rank's lifeline, once all ranks are here and reach each other. Raises UnreachableError, on all ranks alike.

    seconds: for the last rank to come, from when this one is here.
    """
    table = _Table(store, rank, size, seconds)
    lifeline = Lifeline.open(rank, *find_address())
    told = table.share("here", [lifeline.address, socket.gethostname()])
    lifeline.know([address for address, _ in told])
    lost = _lost(lifeline)
    broken = [
        f"rank {who} on {told[who][1]} cannot reach rank {other} on {told[int(other)][1]} at {told[int(other)][0]} ({found})"
        for who, seen in enumerate(table.share("lost", lost, _ASKED * PATIENCE_S))
        for other, found in seen.items()
    ]
    if broken:
        raise UnreachableError("; ".join(broken))
    return lifeline


def _lost(lifeline: Lifeline) -> dict[int, str]:
    """Ranks that do not answer, by what is found instead, the second time as well."""
    lost: dict[int, str] = {}
    for _ in range(_ASKED):
        lost = {other: answer.found for other, answer in lifeline.ask().items() if answer.found != ANSWERS}
        if not lost:
            break
    return lost


@dataclass(frozen=True)
class _Table:
    """What every rank says, told to all."""

    store: Store
    rank: int
    size: int
    seconds: float

    def share(self, what: str, said: object, more: float = 0.0) -> list[Any]:
        """What all ranks say, in their order; the last may come so many seconds later than else. Raises UnreachableError."""
        self.store.set(f"reducebench/{what}/{self.rank}", json.dumps(said))
        if self.rank == 0:
            self.store.set(f"reducebench/{what}", json.dumps(self._collected(what, self.seconds + more)))
        self._wait([f"reducebench/{what}"], self.seconds + more + _MARGIN_S, "rank 0")
        heard = json.loads(self.store.get(f"reducebench/{what}"))
        if isinstance(heard, str):
            raise UnreachableError(heard)
        return list(heard)

    def _collected(self, what: str, seconds: float) -> object:
        """Everybody's; or, as a text, who is missing."""
        keys = [f"reducebench/{what}/{rank}" for rank in range(self.size)]
        try:
            self._wait(keys, seconds, "")
        except UnreachableError:
            missing = [str(rank) for rank, key in enumerate(keys) if not self.store.check([key])]
            return f"not here after rendezvous_s={self.seconds:g}: rank {', '.join(missing)}"
        return [json.loads(self.store.get(key)) for key in keys]

    def _wait(self, keys: list[str], seconds: float, whom: str) -> None:
        try:
            self.store.wait(keys, timedelta(seconds=seconds))
        except DistStoreError as error:
            raise UnreachableError(f"not here after rendezvous_s={self.seconds:g}: {whom}") from error
