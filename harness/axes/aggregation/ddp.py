"""torch's DistributedDataParallel."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Aggregation


class DdpAggregation(Aggregation):
    """Averages in buckets of up to `bucket_cap_mb` MiB during backward. The first iteration has one bucket: warm up twice.

    Of several backward passes it communicates in the last one, and only if that one has a synced forward of its own.
    """

    averages = True
    in_backward = True
    needs_own_forward = True

    def __init__(self, bucket_cap_mb: float = 25.0) -> None:
        if not bucket_cap_mb > 0:
            raise ValueError(f"bucket_cap_mb={bucket_cap_mb}: expected MiB, more than 0")
        self._bucket_cap_mb = bucket_cap_mb

    def wrap(self, model: nn.Module, group: ProcessGroup) -> nn.Module:
        device = next(model.parameters()).device
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, process_group=group, bucket_cap_mb=self._bucket_cap_mb)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[Any]:
        assert isinstance(model, DistributedDataParallel)
        return model.no_sync()

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        """Backward has done it."""
