"""The iterations of a case: how many, what each of them saw, and the most memory that any of them took."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from math import nan
from statistics import median
from time import monotonic

import torch

from harness.rank.exposure import Iterate, Twins, Watch
from harness.rank.memory import peak_bytes, peak_reserved_bytes, reset_peak
from harness.rank.nvtx import Ranges
from harness.rank.pace import GO_ON, Pace
from harness.rank.rig import Rig
from harness.schema.record import CUDA_EVENT, HOST

_RECENT = 20


@dataclass
class Loop:
    """Iterates on a rig; `rows` grows by one an iteration. All ranks call alike."""

    device: torch.device
    rig: Rig
    stopwatch: Watch
    pace: Pace
    twins: Twins | None
    iterate: Iterate
    ranges: Ranges | None = None
    rows: list[list[float]] = field(default_factory=list)
    """Seconds, as `columns` says, warm-ups first."""
    began: float = 0.0
    """When the measured iterations began, by the monotonic clock of the host."""
    _peak: int = 0
    _reserved: int = 0

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock)."""
        return self.stopwatch.columns + (self.twins.columns if self.twins else [])

    @property
    def peak_bytes(self) -> int:
        """Of the measured iterations, without what the twins took in their turn."""
        return max(self._peak, peak_bytes(self.device))

    @property
    def reserved_bytes(self) -> int:
        """Most bytes that the caching allocator reserved in the measured iterations, the twins among them."""
        return max(self._reserved, peak_reserved_bytes(self.device))

    def run(self, warm_up: int, measured: int) -> str:
        """Make the iterations, and as many more at a time as the pace asks for; why there are no more.

        The last one is of the compared batch, and batches take turns over all of them.
        """
        stretch, verdict, heard = warm_up + measured, GO_ON, self._heard(warm_up, measured)
        while verdict == GO_ON:
            for left in reversed(range(stretch)):
                if len(self.rows) == warm_up:
                    self._begin()
                with self.rig.loss.listening() if left == heard else nullcontext():
                    self._once(left)
            heard = -1  # once is enough
            made = [row[self._step] for row in self.rows[warm_up:]]
            verdict = self.pace.verdict(torch.tensor(made, dtype=torch.float64))
            stretch = _whole(min(measured, self.pace.left(len(made))), len(self.rig.phases))
        return verdict

    def _heard(self, warm_up: int, measured: int) -> int:
        """Iterations after the one whose loss is recorded: the last untimed one of the compared batch, where there is one.

        Parameters, samples and random numbers are the same in all iterations of a batch, and so is the loss.
        """
        untimed = _whole(measured, len(self.rig.phases))
        return untimed if untimed < measured + warm_up else 0

    def repeat(self, iterations: int) -> None:
        """Make so many iterations more, over the batches in turn, or fewer where the stopwatch refuses to time them.

        Rows of iterations that were not made are NaN.
        """
        for left in reversed(range(iterations)):
            if self.stopwatch.refused:
                self.rows += [[nan] * len(self.columns)] * (left + 1)
                return
            self._once(left)

    @property
    def host_s(self) -> float:
        """Median of the host's time in the last iterations."""
        step = self.stopwatch.columns.index(("step", HOST))
        return median(row[step] for row in self.rows[-_RECENT:])

    @property
    def _step(self) -> int:
        """The column that a case is judged by: on CUDA the device's, launches included, for the host may see these alone."""
        columns = self.stopwatch.columns
        return columns.index(("step", CUDA_EVENT if ("step", CUDA_EVENT) in columns else HOST))

    def _begin(self) -> None:
        if self.ranges:
            self.ranges.capture()
        self._peak = self._reserved = 0
        reset_peak(self.device)
        self.pace.begin()
        self.began = monotonic()

    def _once(self, left: int) -> None:
        with self.ranges.of_iteration() if self.ranges else nullcontext():
            row = self.iterate(self.rig.model, partial(self.stopwatch.time, self.rig.phases[left % len(self.rig.phases)]))
        if self.twins:
            self._peak = max(self._peak, peak_bytes(self.device))
            row = row + self.twins.time(left, self.iterate)
            self._reserved = self.reserved_bytes
            reset_peak(self.device)
        self.rows.append(row)


def _whole(iterations: int, batches: int) -> int:
    return iterations + -iterations % batches
