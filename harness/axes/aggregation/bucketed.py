"""One all-reduce a bucket, one after the other."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.buffers import InBuckets, flatten, unflatten


class BucketedAggregation(InBuckets):
    """Gradients in buffers of up to `bytes`, in the order of the parameters."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        for bucket in self.buckets(gradients):
            buffer = flatten(bucket)
            dist.all_reduce(buffer, group=group)
            unflatten(buffer, bucket)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The largest buffer."""
        return max(sum(gradient.nbytes for gradient in bucket) for bucket in self.buckets(gradients))
