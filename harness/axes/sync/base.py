"""Sync: where host and device, and rank and rank, wait for each other."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch.distributed import ProcessGroup

from harness.schema.context import Context, Option


class Sync(Option):
    """A policy of waiting. What waits is timed as the phase `sync`; a policy that does not wait has no such phase."""

    asynchronous: ClassVar[bool] = False
    """True if the aggregation's collectives are all started before the first is waited for."""

    host_waits: ClassVar[bool] = False
    """True if a host waits for its CUDA device, or for the other ranks: it cannot launch a whole step ahead of the device."""

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None] | None:
        """What waits between the local gradient and its aggregation."""
        return None

    def after_each(self, device: torch.device) -> Callable[[], None] | None:
        """What waits after each collective of the aggregation; it is part of the phase `aggregate`."""
        return None

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None] | None:
        """What waits after the aggregation."""
        return None


class HostWaitsSync(Sync):
    """The host waits for what it has given the device to do."""

    host_waits = True

    def unsupported(self, context: Context) -> str | None:
        return None if context.device == "cuda" else "the host waits for a CUDA device; this case runs on the CPU"


class InCollectivesSync(Sync):
    """A policy inside the aggregation, between its collectives."""

    def unsupported(self, context: Context) -> str | None:
        return None if context.follows_sync else "this aggregation decides by itself when it waits for its collectives"
