"""Aggregation: how the ranks' local gradients become the global one."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.schema.context import Option


class Aggregation(Option):
    """Sums gradients over ranks, or averages them. `wrap` is called once; then, in each iteration, the passes and `finish`."""

    spans_ranks: ClassVar[bool] = True
    """False: a rank keeps what it has alone; it is its own world, and there is nothing to finish."""

    averages: ClassVar[bool] = False
    """True: what is left is the mean over ranks, not the sum."""

    in_backward: ClassVar[bool] = False
    """True: gradients leave the rank during backward, so that nothing can be done to them between the two."""
    needs_own_forward: ClassVar[bool] = False
    """True: the last of several backward passes must have a forward of its own, outside `accumulating`."""

    def wrap(self, model: nn.Module, group: ProcessGroup) -> nn.Module:
        """The module that the passes go through; one that communicates in backward is made here."""
        return model

    def accumulating(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around passes after which another one follows, in which a wrapped module must not communicate."""
        return nullcontext()

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        """Leave in `gradients` their sum over ranks; or their mean, where it averages."""
