"""float32 parameters, matrix products in float16, and a loss that is scaled."""

from contextlib import AbstractContextManager

import torch
from torch.amp import GradScaler

from harness.axes.precision.base import Precision, tf32

_FIRST_SCALE = 2.0**16
"""torch.amp.GradScaler's own."""
_NEVER = 2**31 - 1


class Fp16ScaledPrecision(Precision):
    """torch.autocast to float16 and torch.amp.GradScaler: the gradient is unscaled after the aggregation.

    A scale at which no batch's gradient overflows is found before the case begins; it does not grow again.
    """

    parameter_dtype = torch.float32
    autocast_dtype = torch.float16

    def computing(self) -> AbstractContextManager[None]:
        return tf32(False)

    def scaler(self, device: torch.device, scale: float | None = None) -> GradScaler:
        return GradScaler(device.type, init_scale=scale or _FIRST_SCALE, growth_interval=_NEVER)
