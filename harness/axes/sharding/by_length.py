"""The long samples here, the short ones there."""

from collections.abc import Sequence

from harness.axes.sharding.base import Sharding, runs
from harness.schema.context import Context


class ByLengthSharding(Sharding):
    """As many samples a rank as `even`, sorted by what they count: rank 0 has the longest. What a sorted data set does."""

    def unsupported(self, context: Context) -> str | None:
        means = {count / size for count, size in zip(context.denominators, context.shard_sizes, strict=True) if size}
        return "every sample counts the same: there is nothing to sort by" if context.world_size > 1 == len(means) else None

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        longest_first = sorted(range(len(terms)), key=lambda index: -terms[index])
        return [[longest_first[place] for place in run] for run in runs(len(terms), world_size)]
