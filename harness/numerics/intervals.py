"""Confidence intervals from order statistics."""

from math import comb

from torch import Tensor

CONFIDENCE = 0.95


def median_interval(values: Tensor) -> tuple[float, float]:
    """(low, high) between which the median of what `values` [n] were drawn from lies in 95 % of cases; infinite for n < 6.

    Exact for independent draws of any distribution: the k-th smallest and the k-th largest, with the largest k for which
    P(fewer than k of n fair coins fall heads) <= 2.5 % (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered = values.sort().values
    rank = _rank(len(ordered))
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (float("-inf"), float("inf"))


def _rank(n: int) -> int:
    """The largest k of the definition above; 0 where there is none."""
    tail, rank = 0, 0
    while rank <= n // 2:
        tail += comb(n, rank)
        if 2 * tail > (1 - CONFIDENCE) * 2**n:
            return rank
        rank += 1
    return rank
