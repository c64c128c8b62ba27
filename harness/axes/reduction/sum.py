"""reduction="sum", divided by n."""

from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedForward


class SumReduction(SharedForward):
    """Backward of the summed loss divided by n."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.sum(work.model(*work.batch.inputs), work.batch.target) / work.denominator

    def backward(self, work: LocalWork, result: Tensor) -> None:
        work.note(result, 1.0)
        result.backward()
