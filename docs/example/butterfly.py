"""A strategy of one's own: every rank swaps its sum with a partner twice as far away each time."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.schema.context import Context


class ButterflyAggregation(Aggregation):
    """Recursive doubling.

    Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
    """

    def unsupported(self, context: Context) -> str | None:
        if context.world_size & (context.world_size - 1):
            return f"recursive doubling takes a power of two of ranks, not {context.world_size}"
        return super().unsupported(context)

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        total = torch.cat([gradient.flatten() for gradient in gradients])
        theirs, distance = torch.empty_like(total), 1
        while distance < group.size():
            partner = group.rank() ^ distance
            sending = dist.isend(total, group_dst=partner, group=group)
            dist.irecv(theirs, group_src=partner, group=group).wait()
            sending.wait()
            total += theirs
            distance *= 2
        parts = total.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """What is sent, and what comes."""
        return 2 * sum(gradient.nbytes for gradient in gradients)
