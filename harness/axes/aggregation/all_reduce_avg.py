"""One all-reduce a parameter, which divides by itself."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation


class AllReduceAvgAggregation(Aggregation):
    """ReduceOp.AVG, one blocking all-reduce after the other. gloo sums, then divides; NCCL multiplies by 1/W first."""

    averages = True

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for gradient in gradients:
            dist.all_reduce(gradient, op=dist.ReduceOp.AVG, group=group)
