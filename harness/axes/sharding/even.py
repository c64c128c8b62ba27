"""Equal numbers of samples."""

from collections.abc import Sequence

from harness.axes.sharding.base import Sharding, runs


class EvenSharding(Sharding):
    """Runs of neighbouring samples whose lengths differ by at most one."""

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        return [list(run) for run in runs(len(terms), world_size)]
