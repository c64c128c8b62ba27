"""The three examples of the text on unequal derivatives, as they are written, and with what is wrong in them mended."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from harness.probes.base import Machine, Probe, Question
from harness.probes.bits import patterns_of
from harness.schema.parameters import Several
from harness.schema.record import Observation


class TextExamplesProbe(Probe):
    """Each example `runs` times: how many different derivatives come out."""

    def __init__(self, runs: Several = 10_000) -> None:
        self._runs = runs

    def questions(self, machine: Machine) -> list[Question]:
        return [
            Question("example 1: a scalar polynomial", self._scalar),
            Question("example 2: an element-wise polynomial", partial(self._polynomial, [2.0, 3.0, 4.0])),
            Question("example 3: a linear layer", partial(self._linear, machine)),
        ]

    def _scalar(self) -> Iterator[Observation]:
        """The text calls it with an integer."""
        yield _attempt("as written", lambda: derivative(2))
        yield from self._polynomial(2.0)

    def _polynomial(self, floats: object) -> Iterator[Observation]:
        seen = patterns_of([("x", derivative(floats))] for _ in range(self._runs))
        yield from seen.observations("with floats")
        assert seen.first is not None
        yield Observation("with floats", "derivative", float(seen.first[0][1].flatten()[0]))

    def _linear(self, machine: Machine) -> Iterator[Observation]:
        torch.manual_seed(machine.seed)
        model = nn.Linear(3, 1, bias=False)
        first, second = (_network_derivative(model).clone() for _ in range(2))
        yield Observation("as written", "second call over first", float((second / first).mean()))
        yield Observation("as written", "first call", float(first.flatten()[0]))
        yield Observation("as written", "second call", float(second.flatten()[0]))

        def cleared() -> Tensor:
            model.zero_grad()
            return _network_derivative(model)

        yield from patterns_of([("weight", cleared())] for _ in range(self._runs)).observations("with zero_grad")


def derivative(x: object) -> Tensor:
    """Of x**2 + 2x + 1, by way of its sum where there are several."""
    leaf = torch.tensor(x, requires_grad=True)
    y = leaf**2 + 2 * leaf + 1
    torch.sum(y).backward()
    assert leaf.grad is not None
    return leaf.grad


def _network_derivative(model: nn.Linear) -> Tensor:
    model(torch.tensor([1.0, 2.0, 3.0], requires_grad=True)).sum().backward()
    assert model.weight.grad is not None
    return model.weight.grad


def _attempt(setting: str, call: Callable[[], object]) -> Observation:
    try:
        call()
    except RuntimeError as error:
        return Observation(setting, "raises", 1.0, f"RuntimeError: {error}")
    return Observation(setting, "raises", 0.0)
