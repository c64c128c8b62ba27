"""Confidence intervals from order statistics."""

from torch import Tensor

_ONE_IN = 40
"""A tail: 2.5 % on either side leave 95 %."""
_NORMAL = 1.959964
"""The same, of the normal distribution."""
_EXACT = 1000


def median_interval(values: Tensor) -> tuple[float, float]:
    """(low, high) between which the median of what `values` [n] were drawn from lies in 95 % of cases; infinite for n < 6.

    Exact for independent draws of any distribution: the k-th smallest and the k-th largest, with the largest k for which
    P(fewer than k of n fair coins fall heads) <= 2.5 % (Conover, Practical Nonparametric Statistics, 3.2).
    """
    ordered = values.sort().values
    rank = _rank(len(ordered))
    return (float(ordered[rank - 1]), float(ordered[-rank])) if rank else (float("-inf"), float("inf"))


def _rank(n: int) -> int:
    """The largest k of the definition above; 0 where there is none. In whole numbers, and beyond 1,000 by the normal law."""
    if n > _EXACT:
        return int(n / 2 - _NORMAL * n**0.5 / 2)
    ways, tail, rank = 1, 1, 0  # of `rank` heads among n coins; of so many or fewer
    while _ONE_IN * tail <= 2**n:
        rank += 1
        ways = ways * (n - rank + 1) // rank
        tail += ways
    return rank
