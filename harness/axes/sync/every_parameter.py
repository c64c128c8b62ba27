"""The host waits for the device after each collective, as careless code does."""

from collections.abc import Callable
from functools import partial

import torch

from harness.axes.sync.base import InCollectivesSync
from harness.schema.context import Context


class EveryParameterSync(InCollectivesSync):
    """torch.cuda.synchronize after each all-reduce: one a parameter, or one a bucket."""

    host_waits = True

    def unsupported(self, context: Context) -> str | None:
        if context.device != "cuda":
            return "torch.cuda.synchronize waits for a CUDA device; on the CPU each collective has ended when it returns"
        return super().unsupported(context)

    def after_each(self, device: torch.device) -> Callable[[], None]:
        return partial(torch.cuda.synchronize, device)
