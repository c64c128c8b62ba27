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
