"""Ratio of the steps of two cases, the most certain of a run, with an interval that holds for all pairs of cases together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import comb, exp, nan
from typing import cast

import numpy as np
import pandas as pd

from harness.report.price import difference
from harness.report.statistics import CONFIDENCE, Floats
from harness.report.timing import Timing

ITERATIONS = "iterations"
SPEED = 2.0
"""A neighbour that takes every other time slice of a core makes whatever runs meanwhile so many times as slow."""
_MANY = 100
"""Iterations; more are enough for any number of pairs."""
Visits = dict[tuple[int, int], float]
"""(launch, visit) to the logarithm of the median step, in seconds."""


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
    """Lower end of the interval of 95 % or more; NaN where there are too few units for one."""
    high: float
    units: int
    of: str
    """Units of the interval: `launches`, `visits`, or `iterations`."""
    pairs: int
    """Pairs of cases of one workload among which this one was picked, and for all of which together the interval holds."""

    def reversed(self) -> "StepRatio":
        """The same, of the other case over this one: launches may order two cases otherwise than their medians do."""
        ratio, low, high = 1 / self.ratio, 1 / self.high, 1 / self.low
        return replace(self, cheap=self.dear, dear=self.cheap, ratio=ratio, low=low, high=high)

    @property
    def claimed(self) -> bool:
        """True if the interval excludes 1; where each case ran once, if it excludes all ratios up to SPEED."""
        return self.low > (SPEED if self.of == ITERATIONS else 1)


def widest(timing: Timing, workloads: pd.Series) -> StepRatio | None:
    """Return the ratio whose interval is furthest above 1; where none is claimed, the largest; None without two like cases.

    `workloads` is indexed by case_id. In each workload every case is compared with the one of the least median. The extremes of
    many equal cases differ by chance. So the intervals hold for all pairs of the run at once (Bonferroni's inequality),
    whichever of them is then picked.
    """
    steps = timing.steps.assign(workload=timing.steps.case_id.map(workloads))
    groups = [group for _, group in steps.groupby("workload", sort=False) if group.case_id.nunique() > 1]
    pairs = sum(comb(group.case_id.nunique(), 2) for group in groups)
    found = [ratio for group in groups for ratio in _ratios(group, pairs)]
    return max(found, key=lambda one: (one.claimed, one.low if one.claimed else one.ratio), default=None)


def _ratios(steps: pd.DataFrame, pairs: int) -> Iterator[StepRatio]:
    """Each case of a workload over the one of the least median."""
    confidence = 1 - (1 - CONFIDENCE) / pairs
    again = steps.launch.nunique() > 1 or steps.visit.nunique() > 1
    by_case = steps.groupby("case_id", sort=False)
    visits = {str(case_id): _by_visit(own) for case_id, own in by_case} if again else {}
    typical = {case_id: float(np.median([*own.values()])) for case_id, own in visits.items()}
    cheap = min(typical, key=typical.__getitem__) if again else str(by_case.step_s.median().idxmin())
    iterations = {str(case_id): own.to_numpy() for case_id, own in by_case.step_s}
    for dear in (case_id for case_id in iterations if case_id != cheap):
        found = (
            _of_visits(visits[dear], visits[cheap], confidence)
            if again
            else _of_iterations(iterations[dear], iterations[cheap], confidence)
        )
        ratio = StepRatio(str(steps.workload.iloc[0]), cheap, dear, *found, pairs)
        yield ratio.reversed() if ratio.high < 1 else ratio


def _by_visit(steps: pd.DataFrame) -> Visits:
    medians = steps.groupby(["launch", "visit"]).step_s.median()
    return cast(Visits, np.log(medians).to_dict())


def _of_visits(dear: Visits, cheap: Visits, confidence: float) -> tuple[float, float, float, int, str]:
    """Visit against visit, so that a drift which both share cancels; launches are the units where there are several."""
    found = difference(dear, cheap, confidence)
    return exp(found.mean), float(np.exp(found.low)), float(np.exp(found.high)), found.units, found.of


def _of_iterations(dear: Floats, cheap: Floats, confidence: float) -> tuple[float, float, float, int, str]:
    """The range of the ratios of all iterations of two cases that ran once each, one after the other.

    If iterations were independent, all n of one case would take longer than all n of an equal one with a chance of 1 in
    binomial(2 n, n). They are not, and neither case's iterations show how the machine's speed changes from one to the other. So
    no interval is narrower than the range, however many iterations there are.
    """
    ratio, units = float(np.median(dear) / np.median(cheap)), min(len(dear), len(cheap))
    if (1 - confidence) * comb(2 * min(units, _MANY), min(units, _MANY)) < 2:
        return ratio, nan, nan, units, ITERATIONS
    return ratio, float(dear.min() / cheap.max()), float(dear.max() / cheap.min()), units, ITERATIONS
