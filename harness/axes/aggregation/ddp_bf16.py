"""torch's DistributedDataParallel, sending bfloat16."""

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Fabric
from harness.axes.aggregation.replicas import Replicated
from harness.schema.context import Context


class DdpBf16Aggregation(Replicated):
    """bf16_compress_hook: buckets are cast to bfloat16, divided by W, summed, and cast back."""

    lossy = True
    sums = False
    sends = torch.bfloat16

    def unsupported(self, context: Context) -> str | None:
        if context.backend == "gloo":
            return "DistributedDataParallel registers bf16_compress_hook for NCCL alone, and this case's group is gloo"
        return super().unsupported(context)

    def register(self, replica: DistributedDataParallel, fabric: Fabric) -> None:
        replica.register_comm_hook(fabric.group, bf16_compress_hook)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Beside the buckets, their copies in bfloat16."""
        return super().needs_bytes(gradients, world_size) + 2 * sum(gradient.numel() for gradient in gradients)
