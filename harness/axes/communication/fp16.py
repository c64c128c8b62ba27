"""Gradients travel in half precision."""

import torch

from harness.axes.communication.base import Communication


class Fp16Communication(Communication):
    """Cast to float16, aggregated, and cast back. Beyond 65504 lies infinity."""

    dtype = torch.float16
