"""Each rank's own mean, averaged over ranks: what DistributedDataParallel does."""

from harness.axes.normalization.base import Normalization


class RankMeanNormalization(Normalization):
    """The mean over ranks of each rank's mean: right only where every rank counts the same."""

    def denominator(self, own: float, total: float) -> float:
        return own

    def divisor(self, world_size: int) -> int:
        return world_size
