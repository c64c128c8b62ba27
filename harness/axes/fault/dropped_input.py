"""A sample that never arrives."""

from harness.axes.fault.base import OneSampleFault, Share, Situation
from harness.schema.context import Context


class DroppedInputFault(OneSampleFault):
    """A sample of `rank` never enters the model, and nothing counts it: the others weigh more, and batch statistics change."""

    def unsupported(self, context: Context) -> str | None:
        reason = super().unsupported(context)
        if reason is None and context.shard_sizes[self._rank] == 1:
            return f"rank {self._rank} has no other sample"
        return reason

    def expected(self, situation: Situation) -> list[Share]:
        terms = [list(of_rank) for of_rank in situation.terms[0]]
        del terms[self._rank][self._sample]
        shares = situation.weigh(terms)
        weights: list[float | None] = list(shares[self._rank].weights)
        weights.insert(self._sample, None)
        return self.changed(shares, Share(tuple(weights)))

    def enters(self, rank: int, samples: int) -> list[int]:
        return [sample for sample in range(samples) if (rank, sample) != (self._rank, self._sample)]
