"""The noise floor of a gradient whose permutations are known."""

import math

import pytest
import torch

from harness.probes.control import Control
from harness.probes.diagnosis.floor import Local, noise_of


def test_the_floor_of_permutations_is_their_root_mean_square() -> None:
    gradient, share = torch.tensor([1.0, 2.0, 3.0]), 0.25
    apart = [0.5, -0.25, 0.125, 0.0]
    permuted = iter([(gradient[:1] + step, gradient[1:] - 2 * step) for step in apart])
    zeros = torch.zeros(3, dtype=torch.float64)
    local = Local(gradient, share, permuted, zeros, 1.0, samples=4)
    right = gradient.double() * share
    whole, first, second = noise_of(Control(None, 0, 1), local, [1, 2], torch.float32, sent=torch.float32, right=right)
    mean_square = sum(step**2 for step in apart) / len(apart)
    assert first.permutation == pytest.approx(share * math.sqrt(mean_square))
    assert second.permutation == pytest.approx(share * math.sqrt(2 * 4 * mean_square))
    assert whole.permutation == pytest.approx(math.hypot(first.permutation, second.permutation))
    assert whole.kernels == 0, "the float64 gradient is the same"


def test_below_float32_the_floor_is_what_sound_gradients_show() -> None:
    """Not the bound on bfloat16, which is 20 times as large for 1,024 samples whose gradients differ."""
    right = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rounded = right.bfloat16()
    local = Local(rounded, 1.0, iter(()), 32 * right, 1 / 32, samples=1024)
    whole, _ = noise_of(Control(None, 0, 1), local, [len(right)], torch.bfloat16, sent=torch.bfloat16, right=right)
    apart = float((rounded.double() - right).norm())
    assert whole.kernels == pytest.approx(apart)
    assert whole.travel == pytest.approx(apart, rel=0.1), "one rounding to bfloat16"
    assert whole.probable > 20 * whole.measured
