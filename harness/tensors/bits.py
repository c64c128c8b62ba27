"""The bits of a tensor, whatever its strides."""

import torch
from torch import Tensor


def bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor [...] in the order of its elements: uint8 [bytes], on the CPU, without a copy if it can.

    A tensor with a dimension of size 1 is contiguous with any stride there, and torch cannot view such a one as bytes.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
