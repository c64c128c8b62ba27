"""One clock for all ranks. Ranks of one host share CLOCK_MONOTONIC; between hosts its offset is estimated, and how well."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from harness.probes.control import Control

PINGS = 24
"""The fastest one counts: what delays a message delays it in one direction, mostly."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/ns/time")


@dataclass(frozen=True)
class Offset:
    """How far a rank's clock is ahead of rank 0's, in seconds."""

    ahead_s: float = 0.0
    uncertainty_s: float = 0.0
    """At most so much off: half a round trip, however unlike its two ways are. 0 where the clock is the same."""


@dataclass(frozen=True)
class CommonClock:
    """Which ranks share a clock. All ranks call alike."""

    control: Control
    leaders: tuple[int, ...]
    """Of each rank: the first of the ranks that share its clock."""

    @classmethod
    def open(cls, control: Control) -> "CommonClock":
        """Ask all ranks whose clock they read."""
        clocks = control.all_gather_text(clock_identity())
        return cls(control, tuple(map(clocks.index, clocks)))

    @property
    def shared(self) -> bool:
        """Whether there is one clock."""
        return len(set(self.leaders)) == 1

    def offset(self) -> Offset:
        """This rank's, now: clocks of hosts drift apart by tens of microseconds a second, so ask again before each case."""
        if self.shared:
            return Offset()
        found = torch.zeros(len(self.leaders), 2, dtype=torch.float64)
        for leader in sorted(set(self.leaders) - {0}):
            if self.control.rank == 0:
                answer_pings(self.control, leader)
            elif self.control.rank == leader:
                found[leader] = torch.tensor(ping(self.control), dtype=torch.float64)
        told = torch.stack(self.control.all_gather(found)).sum(0)
        ahead, uncertainty = told[self.leaders[self.control.rank]].tolist()
        return Offset(ahead, uncertainty)

    def largest_uncertainty(self, before: Offset, after: Offset) -> float:
        """Of all ranks, in what was measured between the two: their own uncertainty, and how far the clock has drifted."""
        if self.shared:
            return 0.0
        own = max(before.uncertainty_s, after.uncertainty_s) + abs(after.ahead_s - before.ahead_s)
        return float(torch.stack(self.control.all_gather(torch.tensor(own, dtype=torch.float64))).max())


def clock_identity() -> str:
    """What two processes have in common when their monotonic clocks are one: the boot of the kernel, and the time namespace."""
    try:
        return f"{_BOOT_ID.read_text().strip()} {_TIME_NAMESPACE.readlink()}"
    except OSError:
        import socket

        return socket.gethostname()


def ping(control: Control) -> tuple[float, float]:
    """(seconds ahead of rank 0, uncertainty) by Cristian's algorithm: rank 0 read its clock halfway, on the fastest trip."""
    best = (0.0, float("inf"))
    now = torch.zeros((), dtype=torch.float64)
    for _ in range(PINGS):
        sent = perf_counter()
        control.send_to_0(now)
        theirs = float(control.receive(now, 0))
        back = perf_counter()
        if (back - sent) / 2 < best[1]:
            best = ((sent + back) / 2 - theirs, (back - sent) / 2)
    return best


def answer_pings(control: Control, rank: int) -> None:
    """Rank 0's part."""
    asked = torch.zeros((), dtype=torch.float64)
    for _ in range(PINGS):
        control.receive(asked, rank)
        control.send(torch.tensor(perf_counter(), dtype=torch.float64), rank)
