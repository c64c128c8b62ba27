"""DistributedDataParallel around a case's model: what the options that are variants of it share."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric


class ReplicatedExchange(Exchange):
    """Backward averages by itself; `finish` has nothing left to do."""

    model: DistributedDataParallel

    def accumulating(self) -> AbstractContextManager[Any]:
        return self.model.no_sync()


class Replicated(Aggregation):
    """Averages in buckets of up to `bucket_cap_mb` MiB during backward. The first iteration has one bucket: warm up twice.

    Of several backward passes it communicates in the last one, and only if that one has a synced forward of its own.
    """

    averages = True
    in_backward = True
    needs_own_forward = True
    needs_a_pass = True
    warm_up = 1

    def __init__(self, bucket_cap_mb: float = 25.0) -> None:
        if not bucket_cap_mb > 0:
            raise ValueError(f"bucket_cap_mb={bucket_cap_mb}: expected MiB, more than 0")
        self._bucket_cap_mb = bucket_cap_mb

    def begin(self, model: nn.Module, fabric: Fabric) -> ReplicatedExchange:
        device = next(model.parameters()).device
        replica = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=fabric.group,
            bucket_cap_mb=self._bucket_cap_mb,
            find_unused_parameters=fabric.some_unused and self.accumulates,  # a static graph finds them by itself
            static_graph=not self.accumulates,
        )
        self.register(replica, fabric)
        return ReplicatedExchange(replica)

    def register(self, replica: DistributedDataParallel, fabric: Fabric) -> None:
        """Give it the communication hook of the variant."""

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Its buckets hold every gradient a second time."""
        return sum(gradient.nbytes for gradient in gradients)
