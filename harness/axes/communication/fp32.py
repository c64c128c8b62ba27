"""Gradients travel in single precision."""

import torch

from harness.axes.communication.base import Communication


class Fp32Communication(Communication):
    """Cast to float32, aggregated, and cast back."""

    dtype = torch.float32
