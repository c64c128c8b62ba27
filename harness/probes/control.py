"""Control: what ranks say to each other beside the measurement. Numbers and texts travel as tensors, never as pickles."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.tensors import collectives

_FAILED = 2
"""What a rank that failed brings where the others meet; above every other sign."""


class PeerFailedError(Exception):
    """Some rank, this one or another, could not do its part."""


class Attempts:
    """Pieces of work that all ranks do together, numbered alike on every rank, and whether this rank's part has failed.

    The number keeps a failure of an earlier piece from being taken for one of the current piece: ranks ask one another outside
    of every collective. The main thread begins, fails and ends an attempt; the guard's thread may free it meanwhile. The lock
    keeps that thread from leaving the groups of the next attempt, which the main thread makes as soon as this one has ended.
    """

    def __init__(self) -> None:
        self.current = 0
        """0 outside of any."""
        self.since = 0.0
        """When it began, by the monotonic clock."""
        self.failed = 0
        """The last one in which this rank failed, or was freed from waiting for one that had failed."""
        self.leave_groups: Callable[[], None] = lambda: None
        """Makes no rank wait for this one in the measured groups, and this one for none; raises nothing."""
        self._made = 0
        self._lock = threading.Lock()

    @contextmanager
    def next(self) -> Iterator[None]:
        """Number the work that is done meanwhile."""
        with self._lock:
            self._made += 1
            self.current, self.since = self._made, time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self.current = 0

    def fail(self) -> bool:
        """Leave the groups, as this rank's part has failed. False where it had been freed, and the error came of that."""
        with self._lock:
            return self._leave()

    def free(self, number: int, also: Callable[[], None] = lambda: None) -> None:
        """From another thread: free the main one, as a rank has failed in this attempt; does nothing where that is over."""
        with self._lock:
            if number and number == self.current:
                self._leave()
                also()

    def _leave(self) -> bool:
        if self.failed == self.current:
            return False
        self.failed = self.current  # before the groups are left, which may take long: the other ranks are to know
        self.leave_groups()
        return True


class Control:
    """Blocking collectives of the gloo control group, on CPU tensors."""

    def __init__(self, group: ProcessGroup | None, rank: int, size: int) -> None:
        self._group, self.rank, self.size = group, rank, size
        self.failing = False
        """Whether this rank waits for the others because it failed."""
        self.waits_since = 0.0
        """When this rank entered the collective that it stands in, by the monotonic clock; 0 outside of any."""
        self.where: Callable[[], str] = lambda: ""
        """Where this rank is, and what it does, for the words on its failure."""
        self.attempts = Attempts()
        self.changed: dict[str, list[int]] = {}
        """Settings of the process that work changed, to the ranks where it did: they were put back. Equal on all ranks."""

    def meet(self, *, failed: bool = False) -> None:
        """Wait for all ranks; raises PeerFailedError, on all of them, when one came here because it failed."""
        self.failing = failed
        try:
            self._largest(_FAILED if failed else 0)
        finally:
            self.failing = False

    def any(self, flag: bool) -> bool:
        """Whether it is so on some rank. Meets as `meet` does, and raises as it does."""
        return self._largest(int(flag)) > 0

    def _largest(self, sign: int) -> int:
        signs = torch.tensor(sign, dtype=torch.uint8, device="cpu")  # work may have left another default device
        if self.size > 1:
            with self._waiting():
                collectives.all_reduce(signs, op=dist.ReduceOp.MAX, group=self._group)
        if signs == _FAILED:
            raise PeerFailedError
        return int(signs)

    def waiting(self) -> tuple[bool, float]:
        """Return True if this rank waits because it failed, and its seconds in the current collective, or 0."""
        since = self.waits_since
        return self.failing, time.monotonic() - since if since else 0.0

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waits_since = time.monotonic()
        try:
            yield
        finally:
            self.waits_since = 0.0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Tensors of all ranks, equal in shape and dtype, in order of rank on rank 0; empty elsewhere."""
        if self.size == 1:
            return [tensor]
        with self._waiting():
            return collectives.gather(tensor, 0, self._group)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Tensors of all ranks, equal in shape and dtype, in order of rank, everywhere."""
        if self.size == 1:
            return [tensor]
        with self._waiting():
            return collectives.all_gather(tensor, self._group)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor; overwrites `tensor`."""
        if self.size > 1:
            with self._waiting():
                collectives.broadcast(tensor, 0, self._group)
        return tensor

    def send_to_0(self, tensor: Tensor) -> None:
        """Hand a tensor to rank 0, which takes it with receive."""
        self.send(tensor, 0)

    def send(self, tensor: Tensor, rank: int) -> None:
        """Hand a tensor to `rank`, which takes it with receive."""
        with self._waiting():
            collectives.send(tensor, rank, self._group)

    def receive(self, tensor: Tensor, rank: int) -> Tensor:
        """Fill `tensor` with what `rank` sends."""
        with self._waiting():
            collectives.receive(tensor, rank, self._group)
        return tensor

    def all_gather_text(self, text: str) -> list[str]:
        """Texts of all ranks, in order of rank, everywhere."""
        encoded = text.encode(errors="replace")
        longest = max(int(n) for n in self.all_gather(torch.tensor(len(encoded))))
        padded = torch.tensor(list(encoded.ljust(longest, b"\0")), dtype=torch.uint8)
        return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in self.all_gather(padded)]
