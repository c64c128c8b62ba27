"""One all-reduce of everything."""

from torch import Tensor

from harness.axes.aggregation.base import Fabric, FollowingSync
from harness.axes.aggregation.buffers import by_dtype, issue_flat


class FlatAggregation(FollowingSync):
    """All gradients in one buffer, copied in and out: one message, and a copy of the gradient in memory."""

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for alike in by_dtype(gradients):
            issue_flat(alike, fabric)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """The buffer."""
        return sum(gradient.nbytes for gradient in gradients)
