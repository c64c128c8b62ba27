"""One forward, then the loss of one row of its output at a time."""

from torch import Tensor

from harness.axes.reduction.base import EachSample, LocalWork, SharedForward


class OneByOneReduction(EachSample, SharedForward):
    """Backward of the loss of each row of the shared output in turn, summed in `.grad`, then divided."""

    def forward(self, work: LocalWork) -> Tensor:
        output: Tensor = work.model(*work.batch.inputs)
        return output

    def backward(self, work: LocalWork, result: Tensor) -> None:
        rows = work.parts(1)
        for row in rows:
            last = row is rows[-1]
            with work.each_pass(last=last):
                work.criterion.sum(result[row], work.batch.target[row]).backward(retain_graph=not last)
        work.divide_gradients()
