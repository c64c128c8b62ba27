"""Ratio of the steps of two cases, the most certain of a run, with an interval that holds for all pairs of cases together."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, nan
from typing import cast

import numpy as np
import pandas as pd

from harness.report.price import difference
from harness.report.statistics import CONFIDENCE, Floats
from harness.report.timing import Timing
from harness.report.verdict import MARGIN

ITERATIONS = "iterations"
_APART = 10
"""Of so many iterations one may lie beyond either end of a case's interval, however many there are: see `_of_iterations`."""


@dataclass(frozen=True)
class StepRatio:
    """The dear case's step over the cheap one's."""

    workload: str
    cheap: str
    """case_id of the least median of the workload."""
    dear: str
    """case_id of the other."""
    ratio: float
    low: float
    """Of the interval of 95 % or more; NaN where there are too few units for one."""
    high: float
    units: int
    of: str
    """What the interval is made of: `launches`, `visits`, or `iterations`."""
    pairs: int
    """Pairs of cases of one workload among which this one was picked, and for all of which together the interval holds."""

    @property
    def claimed(self) -> bool:
        """True if the interval excludes 1; where each case ran once, if it excludes all ratios up to 1 + MARGIN."""
        return self.low > (1 + MARGIN if self.of == ITERATIONS else 1)


def widest(timing: Timing, workloads: pd.Series) -> StepRatio | None:
    """Return the ratio whose interval is furthest above 1; where none is claimed, the largest; None without two like cases.

    `workloads` is indexed by case_id. In each workload every case is compared with the one of the least median. The extremes of
    many equal cases differ by chance. So the intervals hold for all pairs of the run at once (Bonferroni's inequality, of
    iterations Sidak's), whichever of them is then picked.
    """
    steps = timing.steps.assign(workload=timing.steps.case_id.map(workloads))
    groups = [group for _, group in steps.groupby("workload", sort=False) if group.case_id.nunique() > 1]
    counts = [group.case_id.nunique() for group in groups]
    pairs = sum(count * (count - 1) // 2 for count in counts)
    found = [ratio for group in groups for ratio in _ratios(group, pairs, sum(counts))]
    return max(found, key=lambda one: (one.claimed, one.low if one.claimed else one.ratio), default=None)


def _ratios(steps: pd.DataFrame, pairs: int, cases: int) -> Iterator[StepRatio]:
    """Each case of a workload over the one of the least median."""
    by_case = {str(case_id): own for case_id, own in steps.groupby("case_id", sort=False)}
    cheap = min(by_case, key=lambda case_id: float(by_case[case_id].step_s.median()))
    again = steps.launch.nunique() > 1 or steps.visit.nunique() > 1
    for dear in (case_id for case_id in by_case if case_id != cheap):
        ours, theirs = by_case[dear], by_case[cheap]
        if again:
            found = _of_visits(ours, theirs, 1 - (1 - CONFIDENCE) / pairs)
        else:
            found = _of_iterations(ours.step_s.to_numpy(), theirs.step_s.to_numpy(), CONFIDENCE ** (1 / cases))
        yield StepRatio(str(steps.workload.iloc[0]), cheap, dear, *found, pairs)


def _of_visits(dear: pd.DataFrame, cheap: pd.DataFrame, confidence: float) -> tuple[float, float, float, int, str]:
    """Visit against visit, so that a drift which both share cancels; launches are the units where there are several."""
    logs = [np.log(own.groupby(["launch", "visit"]).step_s.median()).to_dict() for own in (dear, cheap)]
    ours, theirs = (cast(dict[tuple[int, int], float], own) for own in logs)
    found = difference(ours, theirs, confidence)
    return exp(found.mean), float(np.exp(found.low)), float(np.exp(found.high)), found.units, found.of


def _of_iterations(dear: Floats, cheap: Floats, confidence: float) -> tuple[float, float, float, int, str]:
    """Of two cases that ran once each, one after the other: the ends of the intervals of their medians over each other.

    The k-th smallest and the k-th largest iteration enclose the median of independent draws with a probability of
    1 - 2 P(fewer than k heads of n fair coins) (Conover, Practical Nonparametric Statistics, 3.2); `confidence` is each case's.
    Iterations are not independent, and the machine's speed between the two cases is in neither: the more iterations, the less
    their own scatter says. So k is at most one tenth of them.
    """
    low, high = (_ends(own, confidence) for own in (dear, cheap))
    ratio, units = float(np.median(dear) / np.median(cheap)), min(len(dear), len(cheap))
    return ratio, low[0] / high[1], low[1] / high[0], units, ITERATIONS


def _ends(values: Floats, confidence: float) -> tuple[float, float]:
    from scipy.special import bdtr

    count = len(values)
    heads = np.arange(count // _APART + 1)
    possible = np.flatnonzero(2 * bdtr(heads, count, 0.5) <= 1 - confidence)
    if not len(possible):
        return nan, nan
    ordered, beyond = np.sort(values), int(possible[-1])
    return float(ordered[beyond]), float(ordered[-1 - beyond])
