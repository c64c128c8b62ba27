"""References to `.grad` that are kept while the next backward runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.probes.accesses.base import Access, Read


class KeptReference(Access):
    """`.grad` is kept without a copy while the next backward runs. Stale: it holds the next gradient, not what was kept."""

    name, safe = "kept .grad, zero_grad in place", False
    set_to_none: ClassVar[bool] = False

    def attempt(self, delay_s: float) -> Read:
        x = self.ramp()
        x.grad = None
        (x**2).sum().backward()
        kept = self.keep(self.grad(x))
        self.clear(x)
        self.pause(delay_s)
        (3 * x).sum().backward()
        return Read(kept, torch.full_like(kept, 3.0), 2 * x.detach())

    def keep(self, gradient: Tensor) -> Tensor:
        """What the reader holds on to."""
        return gradient

    def clear(self, x: Tensor) -> None:
        """zero_grad."""
        if self.set_to_none:
            x.grad = None
        else:
            self.grad(x).zero_()


class KeptClone(KeptReference):
    """A copy."""

    name, safe = "kept .grad.clone(), zero_grad in place", True

    def keep(self, gradient: Tensor) -> Tensor:
        return gradient.clone()


class KeptSetToNone(KeptReference):
    """zero_grad as it is today lets go of the old gradient."""

    name, safe, set_to_none = "kept .grad, zero_grad(set_to_none=True)", True, True


class KeptBucketView(Access):
    """DDP's `.grad` is a view of its bucket, which it fills again whatever zero_grad does."""

    name, safe = "kept .grad, DDP gradient_as_bucket_view, set_to_none=True", False

    @contextmanager
    def ready(self) -> Iterator[None]:
        self._linear = nn.Linear(self.elements, 1, bias=False).to(self.device)
        ids = [self.device] if self.device.type == "cuda" else None
        self._model = DistributedDataParallel(
            self._linear, device_ids=ids, process_group=self.machine.group, gradient_as_bucket_view=True
        )
        for _ in range(3):  # buckets are rebuilt in the second iteration
            self._backward(1.0)
        yield
        del self._model, self._linear

    def attempt(self, delay_s: float) -> Read:
        gradient = self._backward(2.0)
        fresh, kept = gradient.clone(), self.keep(gradient)
        self.pause(delay_s)
        stale = self._backward(3.0)
        return Read(kept.clone(), stale.clone(), fresh)

    def keep(self, gradient: Tensor) -> Tensor:
        """What the reader holds on to."""
        return gradient

    def _backward(self, value: float) -> Tensor:
        self._model.zero_grad(set_to_none=True)
        self._model(torch.full((1, self.elements), value, device=self.device)).sum().backward()
        return self.grad(self._linear.weight)


class KeptBucketClone(KeptBucketView):
    """A copy."""

    name, safe = "kept .grad.clone(), DDP gradient_as_bucket_view, set_to_none=True", True

    def keep(self, gradient: Tensor) -> Tensor:
        return gradient.clone()
