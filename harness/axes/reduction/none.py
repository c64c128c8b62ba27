"""reduction="none": one backward a sample, over a graph that is kept."""

from torch import Tensor

from harness.axes.reduction.base import EachSample, LocalWork, SharedForward


class NoneReduction(EachSample, SharedForward):
    """Backward of each sample's unreduced loss in turn, summed in `.grad`, then divided."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.none(work.model(*work.batch.inputs), work.batch.target)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        last = len(result) - 1
        for row in range(len(result)):
            with work.each_pass(last=row == last):
                result[row].sum().backward(retain_graph=row < last)
        work.divide_gradients()
