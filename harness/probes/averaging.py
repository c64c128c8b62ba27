"""Averaging: over equal runs and batch orders, and over initializations."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from harness.numerics.discrepancy import compare_all
from harness.probes.base import Machine, Probe, Question, Subject
from harness.probes.bits import Gradient
from harness.schema.parameters import Count, Several
from harness.schema.record import Observation

RATE = 0.1


class AveragingProbe(Probe):
    """For each workload: how far the mean of `runs` float32 gradients is from float64; and what averaging does to a loss.

    Each of `runs` initializations takes `steps` steps of SGD twice, with the batch in two orders: that is what rounding does to
    the loss of one run, and to the mean of them all.
    """

    def __init__(self, runs: Several = 16, steps: Count = 8) -> None:
        self._runs, self._steps = runs, steps

    def questions(self, machine: Machine) -> list[Question]:
        ways = (("gradients", self._gradients), ("losses", self._losses))
        return [
            Question(f"{subject.name}: {what}", partial(ask, machine, subject))
            for subject in machine.subjects
            for what, ask in ways
        ]

    def _gradients(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        exact, model = subject.gradient(subject.model(torch.float64)), subject.model(torch.float32)
        orders = _orders(machine, subject, self._runs)
        equal = _mean(subject.gradient(model) for _ in orders)
        ordered = _mean(subject.gradient(model, order) for order in orders)
        for setting, found in (("one run", subject.gradient(model)), ("equal runs", equal), ("batch orders", ordered)):
            yield Observation(setting, "relative_l2 from float64", compare_all(found, exact)[0].relative_l2)

    def _losses(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        """In float64, of the float32 parameters."""
        for seed in range(self._runs):
            for name, order in zip(("one order", "another order"), _orders(machine, subject, 2), strict=True):
                model = subject.initialized(seed, torch.float32)
                self._descend(subject, model, order)
                with torch.no_grad():
                    yield Observation(f"initialization {seed}", f"loss, {name}", float(subject.loss(model.double())))

    def _descend(self, subject: Subject, model: nn.Module, order: Tensor) -> None:
        stepper = torch.optim.SGD(model.parameters(), lr=RATE)
        for _ in range(self._steps):
            stepper.zero_grad()
            subject.loss(model, order).backward()
            stepper.step()


def _orders(machine: Machine, subject: Subject, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(machine.seed)
    return [torch.randperm(subject.samples, generator=generator) for _ in range(count)]


def _mean(gradients: Iterator[Gradient]) -> Gradient:
    """In float32, one after the other."""
    total = next(gradients)
    count = 1
    for gradient in gradients:
        total = [(name, one + other) for (name, one), (_, other) in zip(total, gradient, strict=True)]
        count += 1
    return [(name, tensor / count) for name, tensor in total]
