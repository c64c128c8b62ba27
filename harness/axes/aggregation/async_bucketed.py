"""One all-reduce a bucket, all of them in flight."""

from dataclasses import replace

from torch import Tensor, nn

from harness.axes.aggregation.base import Exchange, Fabric, Issue
from harness.axes.aggregation.buffers import BucketByBucket


class AsyncBucketedAggregation(BucketByBucket):
    """Gradients in buffers of up to `bytes`; every all-reduce is started before the first is waited for."""

    follows_sync = False

    def begin(self, model: nn.Module, fabric: Fabric) -> Exchange:
        return super().begin(model, replace(fabric, issue=Issue(asynchronous=True)))

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """All buffers at once."""
        return sum(gradient.nbytes for gradient in gradients)
