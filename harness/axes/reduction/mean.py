"""reduction="mean": what most training loops do."""

from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedForward


class MeanReduction(SharedForward):
    """Backward of the loss's own mean over the rank's batch, weighted by the batch's share where n is that of all ranks."""

    def forward(self, work: LocalWork) -> Tensor:
        mean = work.criterion.mean(work.model(*work.batch.inputs), work.batch.target)
        return mean if work.denominator == work.count else mean * (work.count / work.denominator)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        work.note(result, 1.0)
        result.backward()
