"""Precision: the dtype of the parameters, and the flags under which they are computed with."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from harness.schema.context import Option


class Precision(Option):
    """One way of representing and computing."""

    parameter_dtype: ClassVar[torch.dtype]

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()
