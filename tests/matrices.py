"""Which combinations of options a test runs: all of them, or some in which every two options meet."""

import itertools
from collections.abc import Callable, Sequence
from random import Random

from allpairspy import AllPairs


def product(*factors: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination."""
    return list(itertools.product(*factors))


def pairs(
    *factors: Sequence[str], seed: int, valid: Callable[[tuple[str, ...]], bool] = lambda combination: True
) -> list[tuple[str, ...]]:
    """Return a covering array: every two options of different factors meet in some valid combination.

    Another seed gives another array.
    """
    random = Random(seed)
    shuffled = [random.sample(factor, len(factor)) for factor in factors]
    complete = len(factors)
    found = AllPairs(shuffled, filter_func=lambda begun: len(begun) < complete or valid(tuple(begun)))
    combinations = [tuple(combination) for combination in found]
    return combinations + _left_out(combinations, product(*factors), valid)


def _left_out(
    combinations: list[tuple[str, ...]], every: list[tuple[str, ...]], valid: Callable[[tuple[str, ...]], bool]
) -> list[tuple[str, ...]]:
    """Return combinations for the pairs that AllPairs gives up, because it tries them in combinations that are not valid."""
    met = {pair for combination in combinations for pair in _pairs_of(combination)}
    added = []
    for combination in every:
        if not met.issuperset(_pairs_of(combination)) and valid(combination):
            added.append(combination)
            met.update(_pairs_of(combination))
    return added


def _pairs_of(combination: tuple[str, ...]) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    return list(itertools.combinations(enumerate(combination), 2))
