"""One all-reduce a parameter."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation


class AllReduceAggregation(Aggregation):
    """Sums each parameter's gradient in place, one blocking all-reduce after the other."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for gradient in gradients:
            dist.all_reduce(gradient, group=group)
