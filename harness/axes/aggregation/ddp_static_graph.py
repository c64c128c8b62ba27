"""torch's DistributedDataParallel with static_graph=True."""

from harness.axes.aggregation.replicas import Replicated


class DdpStaticGraphAggregation(Replicated):
    """Iterations are promised to use the parameters alike, so that it knows when a bucket is full. It does not accumulate."""

    accumulates = False
    needs_same_use = True
