"""Facts: what a step is meant to do, as far as the names of a mistake depend on it. Nothing in them says what went wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

Shares = list[list[float]]
"""Weight of each sample's loss in a gradient: [rank][sample]."""


@dataclass(frozen=True)
class Facts:
    """Of the ranks whose gradients are summed, and of the batches that they saw."""

    terms: Sequence[Sequence[Sequence[float]]]
    """What each sample counts in the loss: [lag][rank][sample]; lag 0 is the batch of the result, 1 the one before it."""
    passes: Sequence[Sequence[range]]
    """Samples of each rank, as one backward after the other takes them."""
    by_rank: bool = False
    """Whether ranks are asked to weigh alike, whatever their batches count: the mean of their means."""
    iteration: int = 1
    """Of the result, since gradients were there for certain not."""
    carries: float = 1.0
    """What of a gradient that is found in `.grad` is left in the next result, where nobody clears it."""
    coupled: bool = False
    """Whether a sample's gradient depends on the batch that it is in (batch statistics)."""

    @property
    def size(self) -> int:
        """Ranks."""
        return len(self.terms[0])

    @property
    def counts(self) -> list[float]:
        """What each rank's batch counts."""
        return [float(sum(own)) for own in self.terms[0]]

    @property
    def uneven(self) -> bool:
        """Whether batches count differently, so that a mean of means is not the mean."""
        return len(set(self.counts)) > 1

    @property
    def total(self) -> float:
        """What the whole batch counts."""
        return sum(self.counts)

    def right(self) -> Shares:
        """Every term of the batch weighs the same."""
        return self.even(0)

    def mean_of_means(self, lag: int = 0) -> Shares:
        """Every rank weighs the same; what counts nothing has weight 0."""
        counts = [float(sum(own)) for own in self.terms[lag]]
        return [
            [1 / (self.size * count) if count else 0.0] * len(own) for own, count in zip(self.terms[lag], counts, strict=True)
        ]

    def even(self, lag: int) -> Shares:
        """As `right`, of another batch; what counts nothing has weight 0."""
        total = sum(map(sum, self.terms[lag]))
        return [[1 / total if total else 0.0] * len(own) for own in self.terms[lag]]
