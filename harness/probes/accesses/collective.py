"""Reads of an all-reduce."""

import time

import torch
from torch import Tensor

from harness.probes.accesses.base import Access, Read
from harness.probes.base import ONE_RANK, Machine
from harness.tensors import collectives


class AllReduced(Access):
    """The blocking all-reduce. With the delay, all ranks but the first join late, and the first one's reads count."""

    name, safe = "all_reduce, then read", True

    def unsupported(self, machine: Machine) -> str | None:
        return ONE_RANK if machine.size == 1 else None

    def attempt(self, delay_s: float) -> Read | None:
        rank, size = self.machine.rank, self.machine.size
        self.machine.meet()
        own = torch.full((self.elements,), float(rank + 1), device=self.device)
        if delay_s and rank:
            time.sleep(delay_s)
        seen = self.read(own.clone())
        if delay_s and rank:
            return None
        return Read(seen, own, torch.full_like(own, size * (size + 1) / 2))

    def read(self, gradient: Tensor) -> Tensor:
        """Sum over ranks, and look."""
        collectives.all_reduce(gradient, group=self.machine.group)
        return gradient.clone()


class AsyncBeforeWait(AllReduced):
    """What async_op=True has done so far."""

    name, safe = "all_reduce(async_op=True), read before wait", False

    def read(self, gradient: Tensor) -> Tensor:
        work = collectives.all_reduce(gradient, group=self.machine.group, async_op=True)
        seen = gradient.clone()
        work.wait()
        return seen


class AsyncAfterWait(AllReduced):
    """What it has done when it has been waited for."""

    name, safe = "all_reduce(async_op=True), read after wait", True

    def read(self, gradient: Tensor) -> Tensor:
        collectives.all_reduce(gradient, group=self.machine.group, async_op=True).wait()
        return gradient.clone()


class NcclOtherStream(AllReduced):
    """`wait` of NCCL orders the current stream: neither the host nor another stream waits."""

    name, safe = "NCCL all_reduce and wait, read on another stream", False

    def unsupported(self, machine: Machine) -> str | None:
        if machine.backend != "nccl":
            return f"the measured process group is {machine.backend}: the wait in question is NCCL's"
        return super().unsupported(machine)

    def read(self, gradient: Tensor) -> Tensor:
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        collectives.all_reduce(gradient, group=self.machine.group, async_op=True).wait()
        self.order(other)
        with torch.cuda.stream(other):
            seen = gradient.clone()
        torch.cuda.synchronize(self.device)
        return seen

    def order(self, other: torch.cuda.Stream) -> None:
        """Nothing."""


class NcclOtherStreamWaited(NcclOtherStream):
    """The other stream waits for the current one."""

    name, safe = "NCCL all_reduce and wait, read on another stream after wait_stream", True

    def order(self, other: torch.cuda.Stream) -> None:
        other.wait_stream(torch.cuda.current_stream())


class NcclHost(NcclOtherStream):
    """The host reads what was copied to pinned memory behind the wait."""

    name, safe = "NCCL all_reduce and wait, pinned copy read by the host at once", False

    def read(self, gradient: Tensor) -> Tensor:
        host = gradient.cpu().pin_memory()
        collectives.all_reduce(gradient, group=self.machine.group, async_op=True).wait()
        host.copy_(gradient, non_blocking=True)
        self.block()
        seen = host.clone()
        torch.cuda.synchronize(self.device)
        return seen.to(self.device)

    def block(self) -> None:
        """Nothing."""


class NcclHostWaited(NcclHost):
    """The host waits for the stream."""

    name, safe = "NCCL all_reduce and wait, pinned copy read by the host after synchronize", True

    def block(self) -> None:
        torch.cuda.current_stream().synchronize()
