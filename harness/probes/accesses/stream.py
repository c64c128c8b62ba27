"""Reads that race with a CUDA stream."""

import torch

from harness.probes.accesses.base import SENTINEL, Access, Read
from harness.probes.base import NO_CUDA, Machine


class OnCuda(Access):
    """Needs streams."""

    def unsupported(self, machine: Machine) -> str | None:
        return NO_CUDA if machine.device.type != "cuda" else None


class SideStream(OnCuda):
    """Backward on a stream of its own, read on the current one."""

    name, safe = "backward on a side stream, read without wait_stream", False

    def attempt(self, delay_s: float) -> Read:
        x, side, current = self.ramp(), torch.cuda.Stream(), torch.cuda.current_stream()
        fresh = 2 * x.detach() + SENTINEL
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.pause(delay_s)
            (x**2).sum().backward()
        self.wait(current, side)
        seen = self.grad(x).clone()
        torch.cuda.synchronize(self.device)
        return Read(seen, torch.full_like(seen, SENTINEL), fresh)

    def wait(self, current: torch.cuda.Stream, side: torch.cuda.Stream) -> None:
        """Nothing."""


class SideStreamWaited(SideStream):
    """The current stream waits for the other one."""

    name, safe = "backward on a side stream, read after wait_stream", True

    def wait(self, current: torch.cuda.Stream, side: torch.cuda.Stream) -> None:
        current.wait_stream(side)


class PinnedCopy(OnCuda):
    """A copy to pinned memory that the host does not wait for."""

    name, safe = "copy_(non_blocking=True) to pinned memory, read at once", False

    def attempt(self, delay_s: float) -> Read:
        x = self.ramp()
        (x**2).sum().backward()
        host = torch.full((self.elements,), SENTINEL, pin_memory=True)
        fresh = (2 * x.detach() + SENTINEL).cpu()
        self.pause(delay_s)
        host.copy_(self.grad(x), non_blocking=True)
        self.wait()
        seen = host.clone()
        torch.cuda.synchronize(self.device)
        return Read(seen, torch.full_like(seen, SENTINEL), fresh)

    def wait(self) -> None:
        """Nothing."""


class PinnedCopyWaited(PinnedCopy):
    """The host waits for an event behind the copy."""

    name, safe = "copy_(non_blocking=True) to pinned memory, read after an event", True

    def wait(self) -> None:
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
