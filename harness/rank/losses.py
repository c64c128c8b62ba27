"""Losses in a precision (under autocast, scaled), and the record of the losses of one iteration."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from harness.axes.precision.base import Precision
from harness.axes.reduction.base import Losses

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class AdaptedLosses:
    """The three reductions of a loss, changed alike."""

    none: Loss
    sum: Loss
    mean: Loss


class LossRecord:
    """Sum of losses / denominator of one iteration on this rank, in float64, from the losses that the step has computed.

    NaN until a loss has been noted.

    Losses are kept detached, so that no graph outlives its backward, and read when the iteration has ended.
    """

    def __init__(self, scaler: GradScaler | None) -> None:
        self.value, self.recorded = nan, False
        self._scaler, self._listens = scaler, False
        self._noted: list[tuple[Tensor, float]] = []

    def note(self, losses: Tensor, denominator: float) -> None:
        """See LocalWork."""
        if self._listens:
            self._noted.append((losses.detach(), denominator))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Around the iteration whose losses are recorded; it reads from the device before and after it."""
        scale = self._scaler.get_scale() if self._scaler else 1.0  # the iteration may halve it
        self._listens = True
        try:
            yield
        finally:
            self._listens, noted, self._noted = False, self._noted, []
        if noted:
            self.recorded = True
            self.value = float(torch.stack([losses.double().sum() / n for losses, n in noted]).sum()) / scale


def adapt_model(model: nn.Module, precision: Precision, device: torch.device) -> None:
    """Put the case's own model under autocast, in place, where the precision asks for it."""
    if precision.autocast_dtype is not None:
        model.forward = _autocast(precision, device)(model.forward)


def adapt_losses(losses: Losses, precision: Precision, device: torch.device, scaler: GradScaler | None) -> Losses:
    """The loss under autocast, and scaled."""
    if precision.autocast_dtype is not None:
        losses = _each(losses, lambda loss: _autocast(precision, device)(loss))
    return _each(losses, lambda loss: partial(_scaled, scaler, loss)) if scaler is not None else losses


def _each(losses: Losses, change: Callable[[Loss], Loss]) -> AdaptedLosses:
    return AdaptedLosses(change(losses.none), change(losses.sum), change(losses.mean))


def _autocast(precision: Precision, device: torch.device) -> Callable[[Any], Any]:
    decorate: Any = torch.autocast(device.type, dtype=precision.autocast_dtype)
    return lambda call: decorate(call)


def _scaled(scaler: GradScaler, loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    scaled: Tensor = scaler.scale(loss(output, target))
    return scaled
