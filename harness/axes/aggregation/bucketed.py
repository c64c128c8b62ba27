"""One all-reduce a bucket, one after the other."""

from torch import Tensor

from harness.axes.aggregation.base import Fabric, FollowingSync
from harness.axes.aggregation.buffers import InBuckets, issue_flat


class BucketedAggregation(InBuckets, FollowingSync):
    """Gradients in buffers of up to `bytes`, in the order of the parameters."""

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for bucket in self.buckets(gradients):
            issue_flat(bucket, fabric)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The largest buffer."""
        return max(sum(gradient.nbytes for gradient in bucket) for bucket in self.buckets(gradients))
