"""The axis `determinism`: what a case sets, it takes back."""

import pytest
import torch
from torch.utils import deterministic

from harness.axes.determinism.deterministic import DeterministicDeterminism


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_hold_for_the_case_alone(before: bool) -> None:
    cudnn = torch.backends.cudnn
    benchmark = cudnn.benchmark
    torch.use_deterministic_algorithms(before)
    cudnn.benchmark = True
    try:
        with DeterministicDeterminism().computing():
            assert (torch.are_deterministic_algorithms_enabled(), cudnn.benchmark) == (True, False)
            assert not deterministic.fill_uninitialized_memory, "kernels that training does not have"
        assert deterministic.fill_uninitialized_memory
        assert (torch.are_deterministic_algorithms_enabled(), cudnn.benchmark) == (before, True)
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.benchmark = benchmark


CUBLAS = (
    "rank 0: RuntimeError: Deterministic behavior was enabled with `torch.use_deterministic_algorithms(True)`, but this "
    "operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this "
    "case, you must set an environment variable before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8"
)
NO_ALGORITHM = "rank 0: RuntimeError: put_ does not have a deterministic implementation, but you set 'torch.use_...'"


def test_errors_of_missing_algorithms_become_reasons_to_skip() -> None:
    """The texts are those of at::Context (torch 2.8 to 2.14)."""
    impossible = DeterministicDeterminism().impossible
    assert "CUBLAS_WORKSPACE_CONFIG" in str(impossible(CUBLAS))
    assert "no deterministic algorithm for put_" in str(impossible(NO_ALGORITHM))
    assert impossible("rank 0: RuntimeError: CUDA out of memory") is None
