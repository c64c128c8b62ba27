"""torch's DistributedDataParallel, sending float16."""

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Fabric
from harness.axes.aggregation.replicas import Replicated


class DdpFp16Aggregation(Replicated):
    """fp16_compress_hook: buckets are cast to float16, divided by W, summed, and cast back. Beyond 65504 lies infinity."""

    lossy = True
    sums = False
    sends = torch.float16

    def register(self, replica: DistributedDataParallel, fabric: Fabric) -> None:
        replica.register_comm_hook(fabric.group, fp16_compress_hook)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Beside the buckets, their copies in float16."""
        return super().needs_bytes(gradients, world_size) + 2 * sum(gradient.numel() for gradient in gradients)
