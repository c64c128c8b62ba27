"""Every rank sums all gradients itself, in one order."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.tensors import collectives


class AllGatherOrderedAggregation(Aggregation):
    """Each parameter is gathered, and summed in order of rank in float64: the same bits whatever the fabric does."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for gradient in gradients:
            total = torch.zeros_like(gradient, dtype=torch.float64)
            for theirs in collectives.all_gather(gradient, group):
                total += theirs
            gradient.copy_(total)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Every rank's gradient of one parameter, gathered by way of one buffer, and their sum in float64."""
        return (2 * world_size + 2) * max(gradient.nbytes for gradient in gradients)
