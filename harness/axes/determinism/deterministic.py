"""The same bits again, on the same device and in the same order."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from harness.axes.determinism.base import Determinism

_FLAGS: Any = torch.utils.deterministic
"""Typed as Any: the module creates its attributes when it is imported, and mypy does not see them."""


class DeterministicDeterminism(Determinism):
    """torch.use_deterministic_algorithms, and no cuDNN autotuning. A case is skipped where an operation has no such algorithm.

    On CUDA the sum and the mean of a loss over sequences (`nll_loss2d`) have none; reduction=none has one (torch 2.11). cuBLAS
    before CUDA 13 also needs an environment variable of the ranks: `+env.CUBLAS_WORKSPACE_CONFIG=:4096:8`.
    """

    @contextmanager
    def computing(self) -> Iterator[None]:
        before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        warned, filled = torch.is_deterministic_algorithms_warn_only_enabled(), _FLAGS.fill_uninitialized_memory
        try:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            _FLAGS.fill_uninitialized_memory = False  # a kernel for each new tensor, which training does not have
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
            torch.backends.cudnn.benchmark = benchmark
            _FLAGS.fill_uninitialized_memory = filled

    def impossible(self, error: str) -> str | None:
        if "uses CuBLAS" in error:
            return "cuBLAS of this CUDA is deterministic only with +env.CUBLAS_WORKSPACE_CONFIG=:4096:8"
        operation = re.search(r"(\S+) does not have a deterministic implementation", error)
        return f"torch has no deterministic algorithm for {operation[1]} on this device" if operation else None
