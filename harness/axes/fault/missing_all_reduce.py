"""Gradients that are never summed over ranks."""

from collections.abc import Callable

from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.fault.base import Fault, Share, Situation, Sum


class MissingAllReduceFault(Fault):
    """Every rank goes on with its own gradient, divided as the sum would have been."""

    across_ranks = True
    in_division = True
    leaves_own = True

    def expected(self, situation: Situation) -> list[Share]:
        return situation.right

    def total(self, summed: Sum, gradients: list[Tensor], group: ProcessGroup, meet: Callable[[], None]) -> None:
        return
