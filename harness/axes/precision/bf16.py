"""bfloat16: the exponent of float32, eight bits of significand."""

import torch

from harness.axes.precision.base import Precision


class Bf16Precision(Precision):
    """Parameters, inputs, gradients and what is sent are bfloat16."""

    parameter_dtype = torch.bfloat16
