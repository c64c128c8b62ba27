"""float32 whose products are taken of numbers with ten bits of fraction."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from harness.axes.precision.base import Precision, tf32
from harness.schema.context import Context

_DROPPED = 13
"""Bits of float32's fraction that TF32 has not (NVIDIA A100 Tensor Core GPU Architecture, 2020)."""


class Tf32Precision(Precision):
    """float32 parameters; matrix products and convolutions on the tensor cores in TF32."""

    parameter_dtype = torch.float32

    def unsupported(self, context: Context) -> str | None:
        return None if context.device == "cuda" else "TF32 is a format of CUDA's tensor cores; this case runs on the CPU"

    def computing(self) -> AbstractContextManager[None]:
        return tf32(True)

    def rounded(self, tensor: Tensor) -> Tensor:
        """To nearest, ties away from zero."""
        bits = tensor.float().view(torch.int32)
        kept = (bits + (1 << (_DROPPED - 1))) & -(1 << _DROPPED)
        return kept.view(torch.float32).to(tensor.dtype)
