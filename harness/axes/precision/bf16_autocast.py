"""float32 parameters, matrix products in bfloat16."""

from contextlib import AbstractContextManager

import torch

from harness.axes.precision.base import Precision, tf32


class Bf16AutocastPrecision(Precision):
    """torch.autocast to bfloat16 around forward and loss; parameters and gradients are float32."""

    parameter_dtype = torch.float32
    autocast_dtype = torch.bfloat16

    def computing(self) -> AbstractContextManager[None]:
        return tf32(False)
