"""Cut: who has which samples of a batch, what they count, and what they are divided by."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.rank.assemble import Parts
from harness.rank.material import Material


@dataclass(frozen=True)
class Cut:
    """A case's batches over its ranks. `lag` 0 is the last iteration's batch, the one that is compared. Equal on all ranks."""

    parts: Parts
    material: Material
    world_size: int

    @property
    def spans_ranks(self) -> bool:
        """Whether anything is summed over ranks."""
        return self.parts.aggregation.spans_ranks

    def shards(self, lag: int = 0) -> list[list[int]]:
        """Each rank's samples."""
        return self.parts.sharding.shards(self.material.batch_terms[lag], self.world_size)

    def terms(self, lag: int = 0) -> list[list[float]]:
        """What each sample counts: [rank][sample]."""
        counts = self.material.batch_terms[lag]
        return [[counts[index] for index in shard] for shard in self.shards(lag)]

    def entering(self, lag: int = 0) -> list[list[int]]:
        """The samples that reach each rank's model: all of its shard, but for a planted fault."""
        enters = self.parts.fault.enters
        return [[shard[place] for place in enters(rank, len(shard))] for rank, shard in enumerate(self.shards(lag))]

    def counts(self, lag: int = 0) -> list[float]:
        """What each rank's batch counts."""
        terms = self.material.batch_terms[lag]
        return [sum(terms[index] for index in shard) for shard in self.entering(lag)]

    @property
    def divisor(self) -> int:
        """What the sum over ranks is divided by: by the aggregation, where it averages; 1, where nothing is summed."""
        if not self.spans_ranks:
            return 1
        return self.world_size if self.parts.aggregation.averages else self.parts.normalization.divisor(self.world_size)

    def denominators(self, lag: int = 0) -> list[float]:
        """What each rank's sum of losses is divided by. With the divisor it makes what the normalization asks for."""
        normalization, counts = self.parts.normalization, self.counts(lag)
        if not self.spans_ranks:
            return [normalization.denominator(own, own) for own in counts]
        share = normalization.divisor(self.world_size) / self.divisor
        return [normalization.denominator(own, sum(counts)) * share for own in counts]

    def loss(self, ranks: Sequence[float]) -> float:
        """Mean loss of the batch, of each rank's sum of losses / its denominator; of rank 0's where nothing is summed."""
        return sum(ranks) / self.divisor if self.spans_ranks else ranks[0]

    def counts_nothing(self) -> str | None:
        """A mean over no terms is 0/0, that of no samples 0; under one denominator for all, such a shard is as good as any."""
        for lag in range(len(self.material.batches)):
            for rank, (denominator, own) in enumerate(zip(self.denominators(lag), self.entering(lag), strict=True)):
                if own and not denominator:
                    return f"no target of rank {rank}'s shard counts in the loss: the rank's own mean is 0/0"
        return None
