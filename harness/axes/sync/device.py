"""The host waits for the device."""

from collections.abc import Callable
from functools import partial

import torch
from torch.distributed import ProcessGroup

from harness.axes.sync.base import HostWaitsSync


class DeviceSync(HostWaitsSync):
    """torch.cuda.synchronize after the local gradient and after the aggregation."""

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(torch.cuda.synchronize, device)

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(torch.cuda.synchronize, device)
