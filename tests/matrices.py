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
    return [tuple(combination) for combination in found]
