"""The two halves of an all-reduce, as sharded optimizers take them."""

from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.axes.aggregation.buffers import by_dtype, flatten, unflatten
from harness.tensors import collectives


class ReduceScatterAllGatherAggregation(Aggregation):
    """One buffer, padded to a multiple of W: each rank sums its share, and all shares are gathered."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for alike in by_dtype(gradients):
            buffer = flatten(alike, multiple=group.size())
            share = buffer.new_empty(buffer.numel() // group.size())
            collectives.reduce_scatter_single(share, buffer, group=group)
            collectives.all_gather_single(buffer, share, group=group)
            unflatten(buffer, alike)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The buffer, and this rank's share of it."""
        return 2 * sum(gradient.nbytes for gradient in gradients)
