"""Sigmoid and cross entropy in one function or in two, near saturation."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from harness.probes.base import Machine, Probe, Question
from harness.schema.record import Observation

RANGES = {"|logit| up to 4": (-4.0, 4.0), "logit from 8 to 40, target 0": (8.0, 40.0)}
Loss = Callable[[Tensor, Tensor], Tensor]


class SaturationProbe(Probe):
    """binary_cross_entropy_with_logits against sigmoid and binary_cross_entropy in float32, both against float64."""

    def questions(self, machine: Machine) -> list[Question]:
        return [Question("binary cross entropy", lambda: _ask(machine))]


def _ask(machine: Machine) -> Iterator[Observation]:
    for setting, (low, high) in RANGES.items():
        logits = torch.linspace(low, high, 1001, device=machine.device)
        exact = _loss_and_gradient(_with_logits, logits.double())
        for name, loss in (("with_logits", _with_logits), ("sigmoid, then cross entropy", _in_two)):
            found = _loss_and_gradient(loss, logits)
            for quantity, value, truth in zip(("loss", "gradient"), found, exact, strict=True):
                error = ((value.double() - truth) / truth).abs().max()
                yield Observation(f"{name}: {setting}", f"largest relative error of the {quantity}", float(error))


def _loss_and_gradient(loss: Loss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Elementwise, of target 0."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, torch.zeros_like(leaf))
    value.sum().backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def _with_logits(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _in_two(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy(torch.sigmoid(logits), target, reduction="none")
