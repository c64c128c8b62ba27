"""torch's DistributedDataParallel, sending a low-rank approximation of each matrix."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Fabric
from harness.axes.aggregation.replicas import Replicated
from harness.schema.parameters import Count, Positive

_START = 2
"""The least that torch allows with error feedback; until then the hook is an exact all-reduce."""


def _one_at_a_time(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The hook sends more from callbacks, which gloo runs in any order: with two buckets under way ranks would mismatch."""
    future: torch.futures.Future[Tensor] = powerSGD_hook(state, bucket)
    future.wait()
    return future


class DdpPowersgdAggregation(Replicated):
    """powerSGD_hook: matrices are sent as products of rank `rank`, and what is lost is added to the next iteration's gradient.

    Vogels, Karimireddy and Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", 2019.
    """

    lossy = True
    sums = False
    sends_gradients = False
    host_waits = True
    warm_up = _START + 1

    def __init__(self, bucket_cap_mb: Positive = 25.0, rank: Count = 1) -> None:
        super().__init__(bucket_cap_mb)
        self._rank = rank

    def register(self, replica: DistributedDataParallel, fabric: Fabric) -> None:
        state = PowerSGDState(fabric.group, matrix_approximation_rank=self._rank, start_powerSGD_iter=_START)
        replica.register_comm_hook(state, _one_at_a_time if dist.get_backend(fabric.group) == "gloo" else powerSGD_hook)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Beside the buckets, what was lost in the last iteration, and a copy while this one's loss is worked out."""
        return 3 * super().needs_bytes(gradients, world_size)
