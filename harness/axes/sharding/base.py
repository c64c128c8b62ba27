"""Sharding: how the global batch is cut over the ranks."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

from harness.schema.context import Option


class Sharding(Option, ABC):
    """Cuts the samples of a batch into one part a rank."""

    @abstractmethod
    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        """The indices of each rank's samples; `terms` is what each sample counts. Every sample belongs to one rank."""


def runs(samples: int, count: int) -> list[range]:
    """So many samples in `count` runs of neighbours whose lengths differ by at most one, longer ones first."""
    size, longer = divmod(samples, count)
    starts = [place * size + min(place, longer) for place in range(count + 1)]
    return [range(start, end) for start, end in itertools.pairwise(starts)]
