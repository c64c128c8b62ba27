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
    mean, of_twice = subject.gradient(model, once), subject.gradient(model, twice)
    setting = "every sample twice"
    yield Observation(setting, "mean, relative_l2", compare_all(of_twice, mean)[0].relative_l2)
    summed, summed_twice = (
        [(name, g * n) for name, g in gradient] for gradient, n in ((mean, subject.samples), (of_twice, 2 * subject.samples))
    )
    yield Observation(setting, "sum, scale", compare_all(summed_twice, summed)[0].scale)
    factors = {"mean": 1.0, "sum": float(subject.samples)}
    yield from drift(machine, subject, {name: partial(_backward, subject, factor) for name, factor in factors.items()})


def _backward(subject: Subject, factor: float, model: nn.Module) -> None:
    (subject.loss(model, None) * factor).backward()
