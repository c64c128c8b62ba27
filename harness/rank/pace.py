"""How many iterations: as many as were asked for, or until the time is known well enough. Rank 0 decides, for all."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from harness.numerics.intervals import median_interval
from harness.probes.control import Control
from harness.schema.config import UntilConfig

GIVEN, GO_ON = "", "go on"
_VERDICTS = (GIVEN, GO_ON, "precise", "budget", "limit")
"""As a number travels for each."""


@dataclass
class Pace:
    """The verdict after each stretch of measured iterations. All ranks call alike, outside of any time."""

    control: Control
    until: UntilConfig
    _began: float = 0.0

    def begin(self) -> None:
        """The first measured iteration comes next."""
        self._began = perf_counter()

    def left(self, made: int) -> int:
        """How many more may be made."""
        return self.until.most - made

    def verdict(self, step_s: Tensor) -> str:
        """`step_s` [measured iterations] are this rank's. GO_ON, or why it is enough: "", `precise`, `budget` or `limit`."""
        if self.until.relative is None:
            return GIVEN
        self.control.meet()  # a rank that has failed says so here, and nobody waits for it below
        ranks = self.control.gather(step_s)
        verdict = self._judge(torch.stack(ranks).amax(0)) if ranks else GO_ON  # cannot fail: the others wait for it
        return _VERDICTS[int(self.control.broadcast(torch.tensor(_VERDICTS.index(verdict))))]

    def _judge(self, slowest: Tensor) -> str:
        low, high = median_interval(slowest)
        if (high - low) / 2 <= (self.until.relative or 0.0) * float(slowest.median()):
            return "precise"
        if len(slowest) >= self.until.most:
            return "limit"
        return "budget" if perf_counter() - self._began >= self.until.seconds else GO_ON
