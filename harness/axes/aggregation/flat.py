"""One all-reduce of everything."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.axes.aggregation.buffers import by_dtype, flatten, unflatten


class FlatAggregation(Aggregation):
    """All gradients in one buffer, copied in and out: one message, and a copy of the gradient in memory."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for alike in by_dtype(gradients):
            buffer = flatten(alike)
            dist.all_reduce(buffer, group=group)
            unflatten(buffer, alike)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The buffer."""
        return sum(gradient.nbytes for gradient in gradients)
