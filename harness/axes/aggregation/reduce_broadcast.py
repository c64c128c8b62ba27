"""A sum on one rank, handed out again."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation


class ReduceBroadcastAggregation(Aggregation):
    """Each parameter is reduced to rank 0 of the group, and broadcast from there: what a parameter server does."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for gradient in gradients:
            dist.reduce(gradient, group_dst=0, group=group)
            dist.broadcast(gradient, group_src=0, group=group)
