"""The precision of a user's step: the dtypes that it was seen to use, and the ways of computing a gradient as it does."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.probes.control import Control
from harness.probes.diagnosis.batches import each_tensor
from harness.probes.diagnosis.user_step import Observed

_SCALES = (1.0, 1.375, 1.1875, 1.625, 1.8125)
"""Factors on a loss that move every rounding of its backward. bfloat16 holds each of them exactly. None but the first is a
power of two, which would change no bit."""
_FAR_NEARER = 0.1
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Precisions:
    """The dtypes of a step. Equal on all ranks."""

    computed: torch.dtype
    """Coarsest dtype of a computation."""
    travels: torch.dtype
    """Coarsest dtype in which gradients are accumulated, cast or sent."""

    @property
    def coarsest(self) -> torch.dtype:
        """The coarser of the two."""
        return _coarsest([self.computed, self.travels])

    def without_computing(self, parameters: Iterable[torch.dtype]) -> "Precisions":
        """The same, of a step that computes in its parameters' own dtypes."""
        return replace(self, computed=_coarsest(parameters))

    @classmethod
    def of(
        cls,
        control: Control,
        seen: Observed | None,
        parameters: Iterable[torch.dtype],
        gradient: torch.dtype,
        stated: torch.dtype | None,
    ) -> "Precisions":
        """Combine what the ranks saw. All ranks call alike.

        seen: None where no call was watched. stated: what the user says is the coarsest. Observed below 16 bits are left out:
        what is computed from them is seen in the dtype of its result.
        """
        computed, travels = {*parameters}, {gradient}
        if seen is None and stated:
            computed, travels = {*computed, stated}, {*travels, stated}
        if seen is not None:
            computed |= seen.computed
            casts = set() if _coarsest(computed) in _HALVES else seen.any
            travels |= seen.sent | casts
            computed |= {stated} - seen.any if stated else set()
        return cls(_agreed(control, computed), _agreed(control, travels))


def _agreed(control: Control, own: Iterable[torch.dtype]) -> torch.dtype:
    """The coarsest dtype of all ranks."""
    names = control.all_gather_text(" ".join(str(dtype).removeprefix("torch.") for dtype in own))
    return _coarsest(getattr(torch, name) for name in " ".join(names).split())


def _coarsest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    return max((dtype for dtype in dtypes if dtype.itemsize > 1), key=lambda dtype: torch.finfo(dtype).eps)


@dataclass(frozen=True)
class Way:
    """A way of computing a gradient: as the model is, under autocast, or with parameters and inputs cast."""

    dtype: torch.dtype | None = None
    cast: bool = False

    def __str__(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def scales(self) -> tuple[float, ...]:
        """Factors on the loss: below float32, several, whose gradients show the rounding of the backward pass."""
        return _SCALES if self.dtype else _SCALES[:1]

    def model(self, model: nn.Module) -> nn.Module:
        """Cast the model, where this way casts it."""
        return model.to(self.dtype) if self.cast else model

    def batch(self, batch: Any) -> Any:
        """The batch, with its floating tensors cast where this way casts them."""
        return each_tensor(batch, self._cast) if self.cast else batch

    def context(self, device: torch.device) -> AbstractContextManager[Any]:
        """Autocast, where this is the way."""
        return torch.autocast(device.type, self.dtype) if self.dtype and not self.cast else nullcontext()

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


NATIVE = Way()


def ways(computed: torch.dtype, parameters: Iterable[torch.dtype]) -> list[Way]:
    """The ways in which a step with these parameters may compute, where it uses this dtype."""
    finer = all(torch.finfo(dtype).eps < torch.finfo(computed).eps for dtype in parameters)
    return [NATIVE, Way(computed), Way(computed, cast=True)] if computed in _HALVES and finer else [NATIVE]


def nearest(found: Sequence[Way], lefts: Sequence[float]) -> Way:
    """The way whose gradient comes nearest to the step's. lefts: the distance of each, but for a factor.

    The step uses a coarser dtype somewhere. It is taken to compute in its parameters' own only where that is far nearer: then
    the coarser dtype belongs to something else, as a metric.
    """
    native, *others = [left if math.isfinite(left) else math.inf for left in lefts]
    if not others or native < _FAR_NEARER * min(others):
        return NATIVE
    return found[1 + others.index(min(others))]
