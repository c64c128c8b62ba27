"""Averaging: over equal runs, over batch orders, and over initializations."""

from collections.abc import Iterator
from functools import partial

import torch

from harness.numerics.discrepancy import compare_all
from harness.probes.base import Machine, Probe, Question, Subject
from harness.probes.bits import Gradient
from harness.schema.record import Observation


class AveragingProbe(Probe):
    """For each workload: how far a float32 gradient, and the mean of `runs` of them, are from float64."""

    def __init__(self, runs: int = 16) -> None:
        if runs < 2:
            raise ValueError(f"runs={runs}: expected at least 2")
        self._runs = runs

    def questions(self, machine: Machine) -> list[Question]:
        return [Question(subject.name, partial(self._ask, machine, subject)) for subject in machine.subjects]

    def _ask(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        generator = torch.Generator().manual_seed(machine.seed)
        exact, model = subject.gradient(subject.model(torch.float64)), subject.model(torch.float32)
        orders = [torch.randperm(subject.samples, generator=generator) for _ in range(self._runs)]
        equal = [subject.gradient(model) for _ in range(self._runs)]
        ordered = [subject.gradient(model, order) for order in orders]
        others = [subject.gradient(subject.initialized(seed, torch.float32)) for seed in range(1, self._runs + 1)]
        yield Observation("one run", "relative_l2 from float64", compare_all(equal[0], exact)[0].relative_l2)
        yield Observation("mean of equal runs", "relative_l2 from float64", compare_all(_mean(equal), exact)[0].relative_l2)
        yield Observation("mean of batch orders", "relative_l2 from float64", compare_all(_mean(ordered), exact)[0].relative_l2)
        apart = max(compare_all(other, equal[0])[0].relative_l2 for other in others)
        yield Observation("other initializations", "largest relative_l2 from the first", apart)
        mean = compare_all(_mean(others), exact)[0].relative_l2
        yield Observation("mean of other initializations", "relative_l2 from float64", mean)


def _mean(gradients: list[Gradient]) -> Gradient:
    """In float32, one after the other."""
    return [(same[0][0], torch.stack([tensor for _, tensor in same]).mean(0)) for same in zip(*gradients, strict=True)]
