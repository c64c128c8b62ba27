"""The ranks wait for each other before they aggregate."""

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from harness.axes.sync.base import Sync


class BarrierSync(Sync):
    """A barrier of the measured process group between the local gradient and its aggregation."""

    host_waits = True

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(dist.barrier, group=group)
