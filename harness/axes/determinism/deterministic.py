"""The same bits again, on the same device and in the same order."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.axes.determinism.base import Determinism


class DeterministicDeterminism(Determinism):
    """torch.use_deterministic_algorithms, and no cuDNN autotuning. An operation without such an algorithm fails the case.

    On CUDA, cuBLAS needs an environment variable of the ranks beside it: `+env.CUBLAS_WORKSPACE_CONFIG=:4096:8`.
    """

    @contextmanager
    def computing(self) -> Iterator[None]:
        before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        warned = torch.is_deterministic_algorithms_warn_only_enabled()
        try:
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
            torch.backends.cudnn.benchmark = benchmark
