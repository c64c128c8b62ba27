"""Sums of floats in other orders: what they do to the value of a sum, and what to its derivative."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from harness.probes.base import Machine, Probe, Question
from harness.probes.bits import patterns_of
from harness.schema.parameters import MOST, Range, Several
from harness.schema.record import Observation


class FloatSumsProbe(Probe):
    """`orders` random orders of `elements` float32 terms."""

    def __init__(self, elements: Annotated[int, Range(3, MOST)] = 10_000, orders: Several = 200) -> None:
        self._elements, self._orders = elements, orders

    def questions(self, machine: Machine) -> list[Question]:
        return [
            Question("addition is not associative", partial(self._triples, machine)),
            Question("a sum in the forward pass", partial(self._forward, machine)),
        ]

    def _draw(self, machine: Machine, rows: int) -> tuple[Tensor, torch.Generator]:
        generator = torch.Generator().manual_seed(machine.seed)
        return torch.randn(rows, self._elements, generator=generator).to(machine.device), generator

    def _triples(self, machine: Machine) -> Iterator[Observation]:
        (a, b, c), _ = self._draw(machine, 3)
        differ = ((a + b) + c) != (a + (b + c))
        yield Observation("random triples", "share that differs", float(differ.double().mean()))
        large = torch.tensor(2.0**25, device=machine.device)
        yield Observation("2^25 + 1 - 2^25", "result", float((large + 1) - large))

    def _forward(self, machine: Machine) -> Iterator[Observation]:
        (x,), generator = self._draw(machine, 1)
        orders = [torch.randperm(self._elements, generator=generator).to(machine.device) for _ in range(self._orders)]
        values, gradients = zip(*(_polynomial(x, order) for order in orders), strict=True)
        yield from patterns_of([("value", value)] for value in values).observations("value")
        yield from patterns_of([("gradient", gradient)] for gradient in gradients).observations("derivative")


def _polynomial(x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of x**2 + 2x + 1 taken in `order`, and its derivative."""
    leaf = x.clone().requires_grad_()
    total = (leaf**2 + 2 * leaf + 1)[order].sum()
    total.backward()
    assert leaf.grad is not None
    return total.detach(), leaf.grad
