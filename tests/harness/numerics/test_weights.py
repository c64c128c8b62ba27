"""Effective weights: recovered where they can be, and no number where they cannot."""

import math

import pytest
import torch
from torch import Tensor

from harness.numerics.weights import Products, effective_weights

ELEMENTS = 2000


def vectors(count: int, elements: int = ELEMENTS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, elements, generator=generator, dtype=torch.float64)


def of(x: Tensor, weights: list[float], noise: float = 0.0) -> Products:
    """Of g = sum of weight * vector, in pieces."""
    g = torch.tensor(weights, dtype=torch.float64) @ x
    g = g + noise * g.norm() / g.numel() ** 0.5 * vectors(1, g.numel(), seed=9)[0]
    pieces = zip(x.split(777, dim=1), g.split(777), strict=True)
    return sum((Products.of(*piece) for piece in pieces), Products.none(len(x)))


@pytest.mark.parametrize("weights", [[1.0, 1, 1, 1], [0.0, 2, 1, 1], [1.0, 0, 1, 1], [2.0, 1, -1, 1e-3]])
def test_weights_come_back(weights: list[float]) -> None:
    found = effective_weights(of(vectors(4), weights))
    assert found.values == pytest.approx(weights, abs=1e-12)
    assert (found.rank, found.groups) == (4, [[0], [1], [2], [3]])
    assert found.residual < 1e-7


def test_an_error_is_no_smaller_than_what_noise_does() -> None:
    x = torch.cat([vectors(3), vectors(3)[:1] + 1e-3 * vectors(1, seed=5)])
    found = effective_weights(of(x, [1.0, 1, 1, 1], noise=1e-6), noise=1e-6)
    assert all(abs(value - 1) <= error for value, error in zip(found.values, found.errors, strict=True))
    assert found.errors[0] > 100 * found.errors[1], "two vectors that are nearly one are known badly"


def test_what_is_no_combination_is_left() -> None:
    x = vectors(4)
    found = effective_weights(of(x, [1.0, 1, 0, 0], noise=0.5))
    assert found.residual == pytest.approx(0.5 / math.sqrt(1.25), rel=0.1)


def test_duplicates_are_merged() -> None:
    x = vectors(3)[[0, 1, 0, 2, 1]]
    found = effective_weights(of(x, [1.0, 1, 1, 1, 0.5]))
    assert found.groups == [[0, 2], [1, 4], [3]]
    assert found.values == pytest.approx([2, 1.5, 2, 1, 1.5], abs=1e-12)


def test_more_vectors_than_elements_have_no_weights() -> None:
    found = effective_weights(of(vectors(9, elements=5), [1.0] * 9))
    assert found.rank == 5
    assert not any(found.identifiable(place) for place in range(9))
    assert found.residual < 1e-7


def test_only_what_is_independent_has_a_weight() -> None:
    """Two of three are proportional, so that nobody knows which of them stands in the sum; the third is known."""
    x = vectors(2)[[0, 0, 1]] * torch.tensor([[1.0], [2.0], [1.0]], dtype=torch.float64)
    found = effective_weights(of(x, [1.0, 1, 1]))
    assert [found.identifiable(place) for place in range(3)] == [False, False, True]
    assert found.values[2] == pytest.approx(1, abs=1e-9)
    assert found.rank == 2


def test_a_vector_of_zeros_has_no_weight() -> None:
    x = vectors(3)
    x[1] = 0
    found = effective_weights(of(x, [1.0, 1, 1]))
    assert [found.identifiable(place) for place in range(3)] == [True, False, True]
    assert found.rank == 2


def test_nothing_is_no_sum() -> None:
    found = effective_weights(of(vectors(2), [0.0, 0.0]))
    assert (found.values, found.residual) == ([0.0, 0.0], 0.0)


def test_a_trained_model_is_not_identifiable_where_its_gradients_are_rounding() -> None:
    """Gradients that nearly cancel: in float32 the sum knows nothing of single ones."""
    x = vectors(2)
    x = torch.cat([x, -x + 1e-9 * vectors(2, seed=3)])
    found = effective_weights(of(x, [1.0] * 4), noise=2.0**-24)
    assert not any(found.identifiable(place) for place in range(4))
    assert found.rank == 2
