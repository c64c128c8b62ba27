"""One denominator for the whole batch."""

from harness.axes.normalization.base import Normalization


class GlobalMeanNormalization(Normalization):
    """The mean over all samples, or tokens that count, of all ranks: right whatever each rank holds."""

    def denominator(self, own: float, total: float) -> float:
        return total

    def divisor(self, world_size: int) -> int:
        return 1
