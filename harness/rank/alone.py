"""Options that no configuration selects: a case on one rank alone, for what the case itself is held against."""

from collections.abc import Sequence

from torch import Tensor

from harness.axes.aggregation.base import Aggregation
from harness.axes.reduction.base import LocalWork, SharedForward
from harness.axes.sharding.base import Sharding


class Alone(Aggregation):
    """Nothing is sent."""

    spans_ranks = False


class WholeBatch(Sharding):
    """Everything on the one rank that there is."""

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        return [list(range(len(terms)))] + [[] for _ in range(world_size - 1)]


class BareStep(SharedForward):
    """The mean loss, forward and backward."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.mean(work.model(*work.batch.inputs), work.batch.target)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        result.backward()
