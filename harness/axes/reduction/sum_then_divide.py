"""reduction="sum", its gradient divided by n."""

from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedForward


class SumThenDivideReduction(SharedForward):
    """Backward of the summed loss; then every gradient is divided, which rounds once more unless n is a power of two."""

    def leftover(self, denominator: float) -> float:
        return 1 / denominator

    def forward(self, work: LocalWork) -> Tensor:
        total = work.criterion.sum(work.model(*work.batch.inputs), work.batch.target)
        work.note(total, work.denominator)
        return work.divided(total)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        result.backward()
        work.divide_gradients()
