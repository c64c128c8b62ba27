"""The ranks wait for each other after they have aggregated."""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from harness.axes.sync.base import Sync


class BarrierAfterSync(Sync):
    """A barrier of the measured process group after the aggregation."""

    host_waits = True

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(dist.barrier, group=group)
