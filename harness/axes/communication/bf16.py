"""Gradients travel in bfloat16."""

import torch

from harness.axes.communication.base import Communication


class Bf16Communication(Communication):
    """Cast to bfloat16, aggregated, and cast back."""

    dtype = torch.bfloat16
