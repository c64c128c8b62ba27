"""One all-reduce a parameter."""

from functools import partial

from torch import Tensor

from harness.axes.aggregation.base import Fabric, FollowingSync
from harness.tensors import collectives


class AllReduceAggregation(FollowingSync):
    """Sums each parameter's gradient in place, one all-reduce after the other."""

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for gradient in gradients:
            fabric.issue(partial(collectives.all_reduce, gradient, group=fabric.group))
