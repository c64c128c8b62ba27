"""The host waits for the current stream."""

from collections.abc import Callable

import torch
from torch.distributed import ProcessGroup

from harness.axes.sync.base import HostWaitsSync


class StreamSync(HostWaitsSync):
    """Stream.synchronize of the current stream after the local gradient and after the aggregation."""

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return torch.cuda.current_stream(device).synchronize

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return torch.cuda.current_stream(device).synchronize
