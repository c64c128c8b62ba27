"""By the global norm."""

from collections.abc import Callable

from torch import nn
from torch.nn.utils import clip_grad_norm_

from harness.axes.clip.base import Clip
from harness.schema.parameters import Positive

_EPSILON = 1e-6
"""torch.nn.utils.clip_grad_norm_ adds it to the norm."""


class ByNormClip(Clip):
    """torch.nn.utils.clip_grad_norm_: scaled to an L2 norm of at most `max_norm`, taken over all parameters.

    Where gradients are sharded, the norm is that of the ranks' norms: a collective, and another order of summation.
    """

    def __init__(self, max_norm: Positive = 1.0) -> None:
        self._max_norm = max_norm

    def clipping(self, parameters: list[nn.Parameter]) -> Callable[[], None]:
        def clip() -> None:
            clip_grad_norm_(parameters, self._max_norm)

        return clip

    def factor(self, norm: float) -> float:
        return min(1.0, self._max_norm / (norm + _EPSILON))
