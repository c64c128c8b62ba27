"""IEEE double precision."""

import torch

from harness.axes.precision.base import Precision


class Fp64Precision(Precision):
    """float64 everywhere: rounding shrinks by 2^29, a difference of another kind stays."""

    parameter_dtype = torch.float64
