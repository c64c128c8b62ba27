"""reduction="none": one backward a sample, over a graph that is kept."""

from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedGraph


class NoneReduction(SharedGraph):
    """Backward of each sample's unreduced loss in turn, summed in `.grad`, then divided."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.none(work.model(*work.batch.inputs), work.batch.target)

    def loss_of(self, work: LocalWork, result: Tensor, row: slice) -> Tensor:
        return result[row].sum()
