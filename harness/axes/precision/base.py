"""Precision: the dtype of the parameters, and the flags and the dtypes in which they are computed with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.amp import GradScaler

from harness.schema.context import Option


class Precision(Option):
    """One way of representing and computing."""

    parameter_dtype: ClassVar[torch.dtype]
    autocast_dtype: ClassVar[torch.dtype | None] = None
    """What torch.autocast computes matrix products in, around forward and loss; None: no autocast."""

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()

    def rounded(self, tensor: Tensor) -> Tensor | None:
        """A floating tensor [...] as the coarsest dtype of this precision rounds it; None where that is float32 or finer."""
        coarse = self.autocast_dtype or self.parameter_dtype
        return tensor.to(coarse).to(tensor.dtype) if coarse.itemsize < torch.float32.itemsize else None

    def scaler(self, device: torch.device, scale: float | None = None) -> GradScaler | None:
        """What scales the loss so that its gradients do not underflow, from `scale` on; made for each case."""
        return None


@contextmanager
def tf32(allow: bool) -> Iterator[None]:
    """Whether float32 may be TF32 in matrix products and in cuDNN's convolutions, where it is by default."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = allow
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
