"""Reads of `.grad` after backward, and in its hooks."""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.probes.accesses.base import SENTINEL, Access, Read


class AfterBackward(Access):
    """The first example of the text: x**2, and `.grad` at once."""

    name, safe = ".grad after backward", True

    def attempt(self, delay_s: float) -> Read:
        x = self.ramp()
        x.register_hook(lambda gradient: self.pause(delay_s))
        (x**2).sum().backward()
        seen = self.grad(x).cpu()
        return Read(seen, torch.full_like(seen, SENTINEL), (2 * x.detach()).cpu() + SENTINEL)


class AfterDeepBackward(Access):
    """A graph of thirty branches."""

    name, safe = ".grad after backward of a deep, branching graph", True
    _branches = 30

    def attempt(self, delay_s: float) -> Read:
        x = self.ramp()
        x.register_hook(lambda gradient: self.pause(delay_s))
        y = x
        for _ in range(self._branches):
            y = y + x
        y.sum().backward()
        seen = self.grad(x).cpu()
        return Read(seen, torch.full_like(seen, SENTINEL), torch.full_like(seen, self._branches + 1 + SENTINEL))


class InHook(Access):
    """A hook of the tensor runs before its gradient is accumulated."""

    name, safe = ".grad in a tensor hook", False

    def attempt(self, delay_s: float) -> Read:
        x = self.ramp()
        seen: list[Tensor] = []

        def look() -> None:
            self.pause(delay_s)
            seen.append(self.grad(x).clone())

        self.watch(x, look)
        (x**2).sum().backward()
        return Read(seen[0], torch.full_like(seen[0], SENTINEL), 2 * x.detach() + SENTINEL)

    def watch(self, x: Tensor, look: Callable[[], object]) -> None:
        """Have `look` called."""

        def hook(gradient: Tensor) -> None:
            look()

        x.register_hook(hook)


class InPostAccumulateHook(InHook):
    """The hook that runs afterwards."""

    name, safe = ".grad in a post-accumulate-grad hook", True

    def watch(self, x: Tensor, look: Callable[[], object]) -> None:
        def hook(parameter: Tensor) -> None:
            look()

        x.register_post_accumulate_grad_hook(hook)
