"""One all-reduce a parameter, which divides by itself."""

from functools import partial

import torch.distributed as dist
from torch import Tensor

from harness.axes.aggregation.base import Fabric, FollowingSync
from harness.tensors import collectives


class AllReduceAvgAggregation(FollowingSync):
    """ReduceOp.AVG, one all-reduce after the other. gloo sums, then divides; NCCL multiplies by 1/W first.

    In place: on one rank NCCL before 2.29.7 leaves elements unwritten (NVIDIA/nccl#1950), which then keep their value.
    """

    averages = True
    sums = False

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for gradient in gradients:
            fabric.issue(partial(collectives.all_reduce, gradient, op=dist.ReduceOp.AVG, group=fabric.group))
