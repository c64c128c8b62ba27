"""One forward, then the loss of one row of its output at a time."""

from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedGraph


class OneByOneReduction(SharedGraph):
    """Backward of the loss of each row of the shared output in turn, summed in `.grad`, then divided."""

    def forward(self, work: LocalWork) -> Tensor:
        output: Tensor = work.model(*work.batch.inputs)
        return output

    def loss_of(self, work: LocalWork, result: Tensor, row: slice) -> Tensor:
        return work.criterion.sum(result[row], work.batch.target[row])
