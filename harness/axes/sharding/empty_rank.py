"""A rank without samples."""

from collections.abc import Sequence

from harness.axes.sharding.base import Sharding, runs
from harness.schema.context import Context
from harness.schema.parameters import Whole


class EmptyRankSharding(Sharding):
    """Rank `rank` has nothing, the others share evenly: it contributes zeros, and its mean is 0. The end of an epoch."""

    def __init__(self, rank: Whole = 1) -> None:
        self._rank = rank

    def unsupported(self, context: Context) -> str | None:
        if context.world_size == 1:
            return "one rank alone cannot be without samples"
        return None if self._rank < context.world_size else f"there is no rank {self._rank} among {context.world_size}"

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        filled = [list(run) for run in runs(len(terms), max(1, world_size - 1))]
        return [*filled[: self._rank], [], *filled[self._rank :]][:world_size]
