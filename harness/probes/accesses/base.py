"""Access: one way of reading a gradient."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from harness.probes.base import Machine
from harness.probes.hold import hold

SENTINEL = -1.0


class Read(NamedTuple):
    """What a read saw, and the two values that it could have seen whole."""

    seen: Tensor
    stale: Tensor
    fresh: Tensor


class Access(ABC):
    """One way of reading. Values are small integers, so that every sum of them is exact."""

    name: ClassVar[str]
    safe: ClassVar[bool]
    """Whether it must never be stale or torn."""

    def __init__(self, machine: Machine, elements: int) -> None:
        self.machine, self.elements, self.device = machine, elements, machine.device

    def unsupported(self, machine: Machine) -> str | None:
        """Why this machine cannot show it."""
        return None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Around all trials."""
        yield

    @abstractmethod
    def attempt(self, delay_s: float) -> Read | None:
        """One trial, its hazard delayed by so much; None on a rank whose read does not count."""

    def ramp(self) -> Tensor:
        """Integers from 0 to 6, as a leaf with SENTINEL in `.grad`."""
        x = (torch.arange(self.elements, device=self.device) % 7).float().requires_grad_()
        x.grad = torch.full_like(x, SENTINEL)
        return x

    @staticmethod
    def grad(x: Tensor) -> Tensor:
        """`.grad`, which there is."""
        assert x.grad is not None
        return x.grad

    def pause(self, delay_s: float) -> None:
        """Hold up what follows: on the device, where there is one."""
        if delay_s and self.device.type == "cuda":
            hold(delay_s)
        elif delay_s:
            time.sleep(delay_s)
