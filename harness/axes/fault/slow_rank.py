"""A straggler."""

import time
from collections.abc import Callable
from functools import partial

from harness.axes.fault.base import OneRankFault


class SlowRankFault(OneRankFault):
    """`rank` sleeps so many `milliseconds` after its local gradient, in each iteration, before it meets the others."""

    def __init__(self, rank: int = 0, milliseconds: float = 20.0) -> None:
        super().__init__(rank)
        if not 0 <= milliseconds < 1e6:
            raise ValueError(f"milliseconds={milliseconds}: expected at least 0, and less than 1e6")
        self._seconds = milliseconds / 1e3

    def hold_up(self, rank: int) -> Callable[[], None] | None:
        return partial(time.sleep, self._seconds) if rank == self._rank else None
