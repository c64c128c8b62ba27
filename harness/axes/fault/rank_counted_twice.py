"""A rank that contributes twice."""

import torch
from torch import Tensor

from harness.axes.fault.base import Contribution, OneRankFault, Share, Situation


class RankCountedTwiceFault(OneRankFault):
    """`rank` adds its gradient to the sum twice."""

    across_ranks = True

    def expected(self, situation: Situation) -> list[Share]:
        return self.changed(situation.right, situation.right[self._rank].scaled(2.0))

    def contribution(self, rank: int) -> Contribution:
        return _twice if rank == self._rank else super().contribution(rank)


def _twice(gradients: list[Tensor]) -> None:
    torch._foreach_add_(gradients, [gradient.clone() for gradient in gradients])
