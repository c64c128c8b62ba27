"""IEEE single precision."""

from contextlib import AbstractContextManager

import torch

from harness.axes.precision.base import Precision, tf32


class Fp32Precision(Precision):
    """float32 everywhere, and no TF32."""

    parameter_dtype = torch.float32

    def computing(self) -> AbstractContextManager[None]:
        return tf32(False)
