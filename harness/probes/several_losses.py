"""Several losses at once: four ways to the gradient of their sum."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from harness.numerics.discrepancy import compare_all
from harness.probes.base import Machine, Probe, Question, Subject
from harness.probes.bits import Gradient
from harness.probes.descent import drift
from harness.schema.record import Observation

DECAY = 1e-2
"""Of the second loss of a model, DECAY/2 * |parameters|^2."""


class SeveralLossesProbe(Probe):
    """Two losses of the text's example, and of each workload: its own and weight decay. Every pair of ways is compared."""

    def questions(self, machine: Machine) -> list[Question]:
        text = Question("the text's x**2 and sin(x)", partial(_text_example, machine))
        return [text, *(Question(subject.name, partial(_model, machine, subject)) for subject in machine.subjects)]


Losses = Callable[[], tuple[Tensor, Tensor]]
Leaves = Sequence[Tensor]


def sum_first(losses: Losses, leaves: Leaves) -> None:
    """Backward of the sum."""
    first, second = losses()
    (first + second).backward()


def in_turn(losses: Losses, leaves: Leaves) -> None:
    """Backward of each, accumulated in `.grad`."""
    for loss in losses():
        loss.backward()


def one_call(losses: Losses, leaves: Leaves) -> None:
    """Both in one call."""
    torch.autograd.backward(list(losses()))


def by_hand(losses: Losses, leaves: Leaves) -> None:
    """Gradients of each by themselves, added by hand."""
    parts = [torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) for loss in losses()]
    for leaf, first, second in zip(leaves, *parts, strict=True):
        leaf.grad = first + second


WAYS = {"the sum": sum_first, "each in turn": in_turn, "one call": one_call, "by hand": by_hand}


def _text_example(machine: Machine) -> Iterator[Observation]:
    """x of 10 elements; its derivative is 2x + cos(x)."""
    drawn = torch.randn(10, generator=torch.Generator().manual_seed(machine.seed), dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        x = drawn.to(machine.device, dtype)
        exact = [("x", 2 * x.double() + torch.cos(x.double()))]
        found = {way: _gradient_of_example(x, compute) for way, compute in WAYS.items()}
        yield from _compared(str(dtype).removeprefix("torch."), {**found, "2x + cos(x)": exact})


def _gradient_of_example(x: Tensor, compute: Callable[[Losses, Leaves], None]) -> Gradient:
    x = x.clone().requires_grad_()
    compute(lambda: (torch.sum(x**2), torch.sum(torch.sin(x))), [x])
    assert x.grad is not None
    return [("x", x.grad)]


def _model(machine: Machine, subject: Subject) -> Iterator[Observation]:
    for dtype in (torch.float32, torch.float64):
        found = {}
        for way, compute in WAYS.items():
            model = subject.model(dtype)
            _leave(subject, compute, model)
            found[way] = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        yield from _compared(str(dtype).removeprefix("torch."), found)
    yield from drift(machine, subject, {way: partial(_leave, subject, compute) for way, compute in WAYS.items()})


def _leave(subject: Subject, compute: Callable[[Losses, Leaves], None], model: nn.Module) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def losses() -> tuple[Tensor, Tensor]:
        return subject.loss(model), DECAY / 2 * torch.stack([(p**2).sum() for p in parameters]).sum()

    compute(losses, parameters)


def _compared(setting: str, found: dict[str, Gradient]) -> Iterator[Observation]:
    for one, other in itertools.combinations(found, 2):
        apart, _ = compare_all(found[one], found[other])
        where = f"{setting}: {one} - {other}"
        yield Observation(where, "max_abs", apart.max_abs)
        yield Observation(where, "relative_l2", apart.relative_l2)
        yield Observation(where, "bitwise_equal", float(apart.bitwise_equal))
