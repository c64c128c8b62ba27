"""Equal numbers of samples."""

import itertools
from collections.abc import Sequence

from harness.axes.sharding.base import Sharding


class EvenSharding(Sharding):
    """Runs of neighbouring samples whose lengths differ by at most one."""

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        size, longer = divmod(len(terms), world_size)
        starts = [rank * size + min(rank, longer) for rank in range(world_size + 1)]
        return [list(range(start, end)) for start, end in itertools.pairwise(starts)]
