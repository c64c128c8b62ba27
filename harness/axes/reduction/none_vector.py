"""reduction="none" with one backward: the vector-Jacobian product against a vector of 1/n."""

import torch
from torch import Tensor

from harness.axes.reduction.base import LocalWork, SharedForward


class NoneVectorReduction(SharedForward):
    """Backward of the unreduced loss against a vector whose elements are 1/n."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.none(work.model(*work.batch.inputs), work.batch.target)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        work.note(result, work.denominator)
        result.backward(torch.full_like(result, 1 / work.denominator))
