"""Sync: where host and device, and rank and rank, wait for each other."""

from collections.abc import Callable

import torch
from torch.distributed import ProcessGroup

from harness.schema.context import Option


class Sync(Option):
    """A policy of waiting. What waits is timed as the phase `sync`; a policy that does not wait has no such phase."""

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None] | None:
        """What waits between the local gradient and its aggregation."""
        return None

    def after_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None] | None:
        """What waits after the aggregation."""
        return None
