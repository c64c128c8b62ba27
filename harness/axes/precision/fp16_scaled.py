"""float32 parameters, matrix products in float16, and a loss that is scaled."""

from contextlib import AbstractContextManager

import torch
from torch.amp import GradScaler

from harness.axes.precision.base import Precision, tf32


class Fp16ScaledPrecision(Precision):
    """torch.autocast to float16 and torch.amp.GradScaler: the gradient is unscaled after the aggregation.

    Where it overflows, the scale is halved for the next iteration, as in training; that is over before the warm-up.
    """

    parameter_dtype = torch.float32
    autocast_dtype = torch.float16

    def computing(self) -> AbstractContextManager[None]:
        return tf32(False)

    def scaler(self, device: torch.device) -> GradScaler:
        return GradScaler(device.type)
