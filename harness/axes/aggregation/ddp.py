"""torch's DistributedDataParallel."""

from harness.axes.aggregation.replicas import Replicated


class DdpAggregation(Replicated):
    """DistributedDataParallel as it comes."""
