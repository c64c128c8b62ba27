"""One all-reduce a bucket, one after the other."""

from torch import Tensor

from harness.axes.aggregation.buffers import BucketByBucket


class BucketedAggregation(BucketByBucket):
    """Gradients in buffers of up to `bytes`, in the order of the parameters."""

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The largest buffer."""
        return max(sum(gradient.nbytes for gradient in bucket) for bucket in self.buckets(gradients))
