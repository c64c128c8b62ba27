"""A kept reference to `.grad` instead of a copy."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from harness.axes.fault.base import Fault, Pass, Share, Situation


class AliasFault(Fault):
    """Gradients of single passes are added up beside `.grad`, the first kept without a copy, and `zero_grad` works in place.

    The second pass then overwrites what was kept: the first pass is lost, and the second counts twice. The bug of the text
    that asked why reduction="none" differs from "sum". One pass, or a gradient of torch.func, leaves nothing to overwrite.
    """

    def expected(self, situation: Situation) -> list[Share]:
        return [_shifted(share, passes) for share, passes in zip(situation.right, situation.passes, strict=True)]

    def passes(self, parameters: list[nn.Parameter]) -> Pass:
        kept: dict[nn.Parameter, Tensor] = {}

        @contextmanager
        def one(last: bool) -> Iterator[None]:
            yield
            for parameter in parameters:
                if parameter.grad is not None:
                    own = parameter.grad  # no clone
                    kept[parameter] = kept[parameter] + own if parameter in kept else own
            if last:
                for parameter, total in kept.items():
                    parameter.grad = total
                kept.clear()
            else:
                _zero_in_place(parameters)

        return one


def _zero_in_place(parameters: list[nn.Parameter]) -> None:
    """zero_grad(set_to_none=False), as every zero_grad was before torch 2.0."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.zero_()


def _shifted(share: Share, passes: tuple[range, ...]) -> Share:
    if len(passes) < 2:
        return share
    factor = dict.fromkeys(passes[0], 0.0) | dict.fromkeys(passes[1], 2.0)
    return Share(tuple((weight or 0.0) * factor.get(sample, 1.0) for sample, weight in enumerate(share.weights)))
