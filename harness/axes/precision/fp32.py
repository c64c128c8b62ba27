"""IEEE single precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.axes.precision.base import Precision


class Fp32Precision(Precision):
    """float32 everywhere; TF32, which cuDNN's convolutions use by default, is off."""

    parameter_dtype = torch.float32

    @contextmanager
    def computing(self) -> Iterator[None]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32
        try:
            cudnn.allow_tf32 = matmul.allow_tf32 = False
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before
