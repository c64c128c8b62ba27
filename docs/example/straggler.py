"""A straggler, planted: what it costs the others should show as their arrival skew, and nowhere else."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from harness.axes.sync.base import Sync


class StragglerSync(Sync):
    """`rank` sleeps so many `milliseconds` between its local gradient and the aggregation, in each iteration."""

    def __init__(self, rank: int = 1, milliseconds: float = 20.0) -> None:
        self._rank, self._seconds = rank, milliseconds / 1e3

    def before_aggregate(self, group: ProcessGroup, device: torch.device) -> Callable[[], None]:
        # every rank has the phase, or its columns would not be the others'
        return partial(time.sleep, self._seconds if dist.get_rank(group) == self._rank else 0.0)
