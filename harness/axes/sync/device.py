"""The host waits for the device."""

from collections.abc import Callable
from functools import partial

import torch
from torch.distributed import ProcessGroup

from harness.axes.sync.base import Sync
from harness.schema.context import Context


class DeviceSync(Sync):
    """torch.cuda.synchronize after the local gradient and after the aggregation."""

    def unsupported(self, context: Context) -> str | None:
        return None if context.device == "cuda" else "torch.cuda.synchronize waits for a CUDA device; this case runs on the CPU"

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(torch.cuda.synchronize, device)

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        return partial(torch.cuda.synchronize, device)
