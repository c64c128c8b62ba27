"""All parameters in one coalesced all-reduce."""

from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation
from harness.axes.aggregation.buffers import by_dtype
from harness.schema.context import Context
from harness.tensors import collectives


class CoalescedAggregation(Aggregation):
    """torch's coalescing manager: one call of the backend for all parameters of one dtype."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for alike in by_dtype(gradients):
            collectives.all_reduce_coalesced(alike, group)

    def unsupported(self, context: Context) -> str | None:
        if context.device == "cuda" and context.backend == "gloo":
            return "gloo has no coalesced all-reduce of CUDA tensors"
        return super().unsupported(context)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """gloo and NCCL may gather what is coalesced into one buffer."""
        return sum(gradient.nbytes for gradient in gradients)
