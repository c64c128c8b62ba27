"""One all-reduce a bucket, all of them in flight."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.aggregation.buffers import InBuckets, flatten, unflatten


class AsyncBucketedAggregation(InBuckets):
    """Gradients in buffers of up to `bytes`; every all-reduce is started before the first is waited for."""

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        started = []
        for bucket in self.buckets(gradients):
            buffer = flatten(bucket)
            started.append((dist.all_reduce(buffer, group=group, async_op=True), buffer, bucket))
        for work, buffer, bucket in started:
            work.wait()
            unflatten(buffer, bucket)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """All buffers at once."""
        return sum(gradient.nbytes for gradient in gradients)
