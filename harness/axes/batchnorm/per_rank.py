"""Each rank by itself: what data parallelism does."""

from harness.axes.batchnorm.base import Batchnorm


class PerRankBatchnorm(Batchnorm):
    """Each rank normalizes by the statistics of the samples that it sees."""
