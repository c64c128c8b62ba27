"""Error bounds of sums against sums, and the budget of a distance."""

import math

import pytest
import torch

from harness.numerics.bounds import pairwise_height, probable, unit_roundoff, worst_case
from harness.numerics.budget import budget, products_of
from harness.numerics.trees import Tree, evaluate, height
from harness.numerics.weights import Products

CHAIN, BALANCED = "chain", "balanced"


def tree(kind: str, terms: list[int]) -> Tree:
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) - 1 if kind == CHAIN else len(terms) // 2
    return tree(kind, terms[:middle]), tree(kind, terms[middle:])


@pytest.mark.parametrize("kind", [CHAIN, BALANCED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_error_lies_below_its_bound_and_near_what_is_probable(kind: str, dtype: torch.dtype) -> None:
    """Chains are long enough to show the difference between the two, and short enough that bfloat16 has a bound at all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2000, generator=generator).to(dtype)
    order = tree(kind, list(range(64)))
    apart = (evaluate(order, lambda leaf: x[leaf]).double() - x.double().sum(0)).norm()
    size = x.double().abs().sum(0).norm()
    assert apart < worst_case(height(order), dtype) * size
    assert 0.02 * probable(height(order), dtype) * size < apart < probable(height(order), dtype) * size


def test_the_bounds_are_the_formulas() -> None:
    assert (unit_roundoff(torch.float32), unit_roundoff(torch.bfloat16)) == (2.0**-24, 2.0**-8)
    assert worst_case(3, torch.bfloat16) == pytest.approx(3 / 256 / (1 - 3 / 256))
    assert worst_case(300, torch.bfloat16) == math.inf
    assert probable(4, torch.float64) == 2.0**-52
    assert [pairwise_height(terms) for terms in (0, 1, 2, 3, 4, 5, 1024)] == [0, 0, 1, 2, 2, 3, 10]


def test_shares_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    rungs = torch.randn(5, 1000, generator=generator)
    pieces = zip(*(rung.split(300) for rung in rungs), strict=True)
    steps = budget(sum((products_of(piece) for piece in pieces), Products.none(4)))
    assert sum(step.share for step in steps) == pytest.approx(1)
    total = (rungs[4] - rungs[0]).double()
    step = (rungs[2] - rungs[1]).double()
    assert steps[1].share == pytest.approx(float(step @ total / (total @ total)), abs=1e-6)
    assert steps[1].l2 == pytest.approx(float(step.norm()), rel=1e-6)


def test_a_single_cause_has_all_of_it() -> None:
    start, moved = torch.zeros(10), torch.ones(10)
    steps = budget(products_of([start, start, moved, moved]))
    assert [step.share for step in steps] == [0, 1, 0]
    assert [step.length for step in steps] == [0, 1, 0]


def test_no_distance_has_no_shares() -> None:
    (step,) = budget(products_of([torch.ones(3), torch.ones(3)]))
    assert math.isnan(step.share)
    assert step.l2 == 0
