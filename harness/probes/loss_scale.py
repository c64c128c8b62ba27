"""What the factor between reduction="sum" and "mean" does: to the gradient of more data, and to an optimizer."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from harness.numerics.discrepancy import compare_all
from harness.probes.base import Machine, Probe, Question, Subject
from harness.probes.descent import drift
from harness.schema.record import Observation


class LossScaleProbe(Probe):
    """For each workload: the batch once and twice over under "mean" and "sum"; and steps of both at one learning rate."""

    def questions(self, machine: Machine) -> list[Question]:
        return [Question(subject.name, partial(_ask, machine, subject)) for subject in machine.subjects]


def _ask(machine: Machine, subject: Subject) -> Iterator[Observation]:
    once, twice = torch.arange(subject.samples), torch.arange(2 * subject.samples) % subject.samples
    model = subject.model(torch.float64)
    for reduction in ("mean", "sum"):
        gradients = (subject.gradient(model, order, reduction) for order in (twice, once))
        apart, _ = compare_all(*gradients)
        yield Observation(f"every sample twice, {reduction}", "relative_l2", apart.relative_l2)
        yield Observation(f"every sample twice, {reduction}", "scale", apart.scale)
    yield from drift(machine, subject, {reduction: partial(_backward, subject, reduction) for reduction in ("mean", "sum")})


def _backward(subject: Subject, reduction: str, model: nn.Module) -> None:
    subject.loss(model, reduction=reduction).backward()
