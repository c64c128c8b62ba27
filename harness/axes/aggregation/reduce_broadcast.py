"""A sum on one rank, handed out again."""

from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.tensors import collectives


class ReduceBroadcastAggregation(Aggregation):
    """Each parameter is reduced to rank 0 of the group, and broadcast from there: what a parameter server does."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for gradient in gradients:
            collectives.reduce_to(gradient, 0, group)
            collectives.broadcast(gradient, 0, group)
