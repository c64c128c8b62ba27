"""The host waits for an event."""

from collections.abc import Callable

import torch
from torch.distributed import ProcessGroup

from harness.axes.sync.base import HostWaitsSync


class EventSync(HostWaitsSync):
    """An event recorded on the current stream, and waited for, after the local gradient and after the aggregation."""

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return _recording(device)

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return _recording(device)


def _recording(device: torch.device) -> Callable[[], None]:
    event = torch.cuda.Event()

    def wait() -> None:
        event.record(torch.cuda.current_stream(device))
        event.synchronize()

    return wait
