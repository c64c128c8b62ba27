"""A rank that contributes nothing."""

import torch

from harness.axes.fault.base import Contribution, OneRankFault, Share, Situation


class DroppedRankFault(OneRankFault):
    """`rank` takes part in the all-reduce with zeros."""

    across_ranks = True

    def expected(self, situation: Situation) -> list[Share]:
        return self.changed(situation.right, situation.right[self._rank].scaled(0.0))

    def contribution(self, rank: int) -> Contribution:
        return torch._foreach_zero_ if rank == self._rank else super().contribution(rank)
