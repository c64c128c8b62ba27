"""Clip: what is done to the aggregated gradient before the optimizer would take it."""

from collections.abc import Callable

from torch import nn

from harness.schema.context import Option


class Clip(Option):
    """A limit on the gradient. What limits is timed as the phase `clip`; none has no such phase."""

    def clipping(self, parameters: list[nn.Parameter]) -> Callable[[], None] | None:
        """What changes `.grad` of the parameters in place."""
        return None

    def factor(self, norm: float) -> float:
        """What it multiplies a gradient of this L2 norm by."""
        return 1.0
