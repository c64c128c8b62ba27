"""Lifelines: a rank asks the others, beside every collective, whether they are still there, and what they do.

A thread of each rank answers on a socket of its own. Who takes the connection and says nothing is stopped, or holds its
interpreter; who refuses it is dead; who does not take it lies behind a broken link. The question is asked only when something
has taken longer than a collective may, so that nothing goes over the network while it is measured.
"""

import contextlib
import ipaddress
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

from harness.schema.rank_state import ANSWERS, DEAD, SILENT, UNREACHABLE

PATIENCE_S = 1.5
"""For an answer: a lost packet is sent again within it, and a process that has the CPU answers in milliseconds."""
_BACKLOG = 64
_AT_ONCE = 64
_ALL = 32
"""Ranks of a world in which each asks every other one."""
_LONGEST = 1024
"""Bytes of an answer."""
_LONGEST_PLACE = 200
"""Bytes."""


@dataclass(frozen=True)
class Doing:
    """Activity of a rank: its phase, its case and the line of code."""

    phase: str = ""
    seconds: float = 0.0
    """In this phase."""
    waits: bool = False
    """True while it stands in a collective of the control group: it is done with its own part, and others are not."""
    place: str = ""
    """The line of the user's code at which it stands, and the collective there; empty outside of such code."""
    collective: bool = False
    """True where `place` is a collective that the user's code called."""
    stands_s: float = 0.0
    """Seconds in that collective; the phase may have begun long before."""
    busy: bool = False
    """True while the process computes, reads or writes, in a phase in which all ranks do the same."""
    failed: int = 0
    """Number of the last attempt in which this rank failed, or was freed from waiting for one that had."""


@dataclass(frozen=True)
class Answer:
    """Of one rank."""

    found: str
    doing: Doing = Doing()


@dataclass
class Lifeline:
    """One rank's socket. `address` is where the others find it."""

    rank: int
    address: str
    """`host:port`."""
    doing: Callable[[], Doing] = Doing
    """What this rank says of itself."""
    _others: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, rank: int, host: str, listen: str | None = None) -> "Lifeline":
        """Listen on a free port of this host's address `host`, or of `listen`, and answer from now on."""
        at = listen or host
        family = socket.AF_INET6 if ":" in at else socket.AF_INET
        listening = socket.create_server((at, 0), family=family, backlog=_BACKLOG)
        line = cls(rank, f"{host}:{listening.getsockname()[1]}")
        threading.Thread(target=line._answer, args=(listening,), name="lifeline", daemon=True).start()
        return line

    def know(self, addresses: Sequence[str]) -> None:
        """Where the ranks are found, in their order. Names are looked up now: once a cable is cut, nobody may answer."""
        self._others = {rank: _looked_up(addresses[rank]) for rank in watched(self.rank, len(addresses))}

    def ask(self) -> dict[int, Answer]:
        """What the other ranks are found to be; takes PATIENCE_S for each _AT_ONCE of them that do not answer."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = {rank: pool.submit(_ask, rank, address) for rank, address in self._others.items()}
            return {rank: answer.result() for rank, answer in asked.items()}

    def _answer(self, listening: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError):
                caller, _ = listening.accept()
                with caller:
                    doing = self.doing()
                    place = doing.place.encode(errors="replace")[:_LONGEST_PLACE].decode(errors="ignore")
                    told = json.dumps(asdict(replace(doing, place=place)))
                    caller.sendall(f"{_greeting(self.rank)} {told}\n".encode())


def watched(rank: int, size: int) -> list[int]:
    """Whom a rank asks: all others, or in a large world those at distances that are powers of two; each is asked by as many."""
    if size <= _ALL:
        return [other for other in range(size) if other != rank]
    steps = [2**power for power in range((size - 1).bit_length())]
    return sorted({(rank + sign * step) % size for step in steps for sign in (1, -1)} - {rank})


def _looked_up(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        found = str(socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return address
    return f"{found}:{port}"


def _ask(rank: int, address: str) -> Answer:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            return _heard(rank, connection)
    except ConnectionRefusedError:
        return Answer(DEAD)
    except OSError:  # no answer in time, no route, or a link that is down
        return Answer(UNREACHABLE)


def _heard(rank: int, connection: socket.socket) -> Answer:
    try:
        said = connection.recv(_LONGEST).decode(errors="replace")
    except TimeoutError:
        return Answer(SILENT)
    except OSError:
        return Answer(DEAD)
    greeting, _, doing = said.partition(f"{_greeting(rank)} ")
    if greeting or not doing:
        return Answer(DEAD)  # another process, on a port that the rank has left
    return Answer(ANSWERS, _doing(doing))


def _doing(told: str) -> Doing:
    """Nothing is known of what a rank of another version does: before versions are compared, that it answers is enough."""
    try:
        return Doing(**json.loads(told))
    except (ValueError, TypeError):
        return Doing()


def _greeting(rank: int) -> str:
    return f"reducebench rank {rank}"


def find_address(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """(where the others find this rank's host, where to listen), from what torchrun tells its ranks.

    This host's address on the way to the store is one that the others reach it at too. Only the store's own host may take that
    way for one that stays inside; where there are other hosts, they know it by the name that they know the store by.
    """
    master, port = environment.get("MASTER_ADDR", "127.0.0.1"), int(environment.get("MASTER_PORT", "1"))
    own = _address_towards(master, port)
    several = environment.get("LOCAL_WORLD_SIZE") != environment.get("WORLD_SIZE")
    if several and ipaddress.ip_address(own).is_loopback:
        return master, "::" if ":" in own else "0.0.0.0"
    return own, own


def _address_towards(master: str, port: int) -> str:
    family, _, _, _, address = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(address)  # a datagram socket sends nothing to connect
        own: str = way.getsockname()[0]
    return own
