"""Calls in turn, A B C B C A ..., and ratios of their times: a comparison that holds while the machine's speed drifts."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

RESAMPLES = 2000
T = TypeVar("T")


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of A's time over B's, and the 95 % bootstrap interval of that median over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """`pairs` are the (A, B) of each round; at least ten."""
    assert len(pairs) >= 10
    ratios = [a / b for a, b in pairs]
    random = Random(0)
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return Ratio(statistics.median(ratios), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)])


def alternate(calls: Sequence[Callable[[], T]], rounds: int) -> list[tuple[T, ...]]:
    """Results of the calls, round by round. Each round begins with another call, so that none is always last."""
    results = []
    for turn in range(rounds):
        order = [(turn + place) % len(calls) for place in range(len(calls))]
        returned = {index: calls[index]() for index in order}
        results.append(tuple(returned[index] for index in range(len(calls))))
    return results
