"""Precision: the dtype of the parameters, and the flags under which they are computed with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch

from harness.schema.context import Option


class Precision(Option):
    """One way of representing and computing."""

    parameter_dtype: ClassVar[torch.dtype]

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()


@contextmanager
def without_tf32() -> Iterator[None]:
    """float32 is float32: TF32, which cuDNN's convolutions use by default, is off."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
