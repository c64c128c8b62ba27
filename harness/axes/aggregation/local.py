"""No communication."""

from harness.axes.aggregation.base import Aggregation


class LocalAggregation(Aggregation):
    """What a rank has alone: the gradient of its own shard's mean."""

    spans_ranks = False
