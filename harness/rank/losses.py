"""A loss as a precision has it computed: under autocast, and scaled."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
