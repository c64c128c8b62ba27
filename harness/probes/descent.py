"""Optimizer steps of two ways to compute one gradient, from equal parameters."""

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from harness.numerics.discrepancy import compare_all
from harness.probes.base import Machine, Subject
from harness.schema.record import Observation

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
Step = Callable[[nn.Module], None]
"""Leaves the gradient in `.grad` of the parameters, which hold none."""


def drift(machine: Machine, subject: Subject, ways: Mapping[str, Step]) -> Iterator[Observation]:
    """How far any two ways are apart after the configured steps, for each optimizer; nothing where there are none."""
    steps = machine.drift.steps
    for optimizer, rate in machine.drift.optimizers.items() if steps else ():
        trained = {name: _descend(subject, step, optimizer, rate, steps) for name, step in ways.items()}
        losses = {name: float(subject.loss(model).detach()) for name, model in trained.items()}
        for one, other in itertools.combinations(ways, 2):
            apart, _ = compare_all(_parameters(trained[other]), _parameters(trained[one]))
            where = f"{one} - {other}, {steps} steps of {optimizer}"
            yield Observation(where, "parameters, relative_l2", apart.relative_l2)
            yield Observation(where, "loss", losses[other])
            yield Observation(where, "against_loss", losses[one])


def _descend(subject: Subject, step: Step, optimizer: str, rate: float, steps: int) -> nn.Module:
    model = subject.model(torch.float32)
    stepper = OPTIMIZERS[optimizer](model.parameters(), lr=rate)
    for _ in range(steps):
        model.zero_grad()
        step(model)
        stepper.step()
    return model


def _parameters(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.detach()) for name, parameter in model.named_parameters()]
