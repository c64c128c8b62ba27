"""Reduced samples of a case, for all parts of the report. Samples are read and reduced once a run, and not kept."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa

from harness.report.statistics import Blocks, Floats, Summary, nan_median, summarize
from harness.report.times import AGGREGATE, COLLECTIVE_ALONE, EXPOSED, SKEW, STEP, Key, Times, times_of
from harness.schema.record import ARRIVAL


@dataclass(frozen=True)
class CaseTimes:
    """Times of one case, of all launches: of the slowest rank in each iteration, and of each rank over all iterations.

    Its size grows with iterations plus ranks, not with their product.
    """

    clock: str
    """The clock that the case is judged by; see `Times.clock`."""
    blocks: Blocks
    slowest: dict[Key, Floats]
    """[iterations]: seconds of the slowest rank; see `Times.slowest`."""
    ranks: pd.DataFrame
    """One row a rank: median seconds of its step, and of its waiting for the last rank; shares of the iterations in which its
    step is the slowest, and in which it enters `aggregate` last."""
    after_backward: bool
    """True if the aggregation communicates after backward, so that backward cannot hide its communication."""

    @property
    def step(self) -> Floats:
        """[iterations]: seconds of the slowest rank's step."""
        return self.slowest[self.clock, STEP]

    @cached_property
    def summaries(self) -> dict[Key, Summary]:
        """Statistics over iterations. They are computed at the first use: a comparison needs none."""
        series = np.stack(list(self.slowest.values()), axis=1)
        return dict(zip(self.slowest, summarize(series, self.blocks), strict=True))

    @property
    def overlap(self) -> float:
        """The share of communication that is hidden behind other work; NaN unless the aggregation communicates during backward.

        1 - exposed / collective_alone, of the medians over all iterations.
        """
        alone, exposed = (self.slowest.get((self.clock, phase)) for phase in (COLLECTIVE_ALONE, EXPOSED))
        if alone is None or exposed is None or self.after_backward:
            return float("nan")
        return float(1 - nan_median(exposed) / nan_median(alone))

    @property
    def launch_spread(self) -> float:
        """Standard deviation of the launches' median steps, as a share of their median; NaN of one launch."""
        medians = self.launch_medians((self.clock, STEP))
        return float(medians.std(ddof=1) / np.median(medians)) if len(medians) > 1 else float("nan")

    def launch_medians(self, key: Key) -> Floats:
        """[launches]: the median over iterations of the slowest rank's seconds."""
        return np.array([float(nan_median(self.slowest[key][own])) for own in self.blocks.launches])

    def visit_medians(self) -> dict[tuple[int, int], float]:
        """(launch, visit) to the median over its iterations of the slowest rank's step."""
        visits = np.stack([self.blocks.launch, self.blocks.visit])
        places, of = np.unique(visits, axis=1, return_inverse=True)
        return {(int(launch), int(visit)): float(np.median(self.step[of == k])) for k, (launch, visit) in enumerate(places.T)}

    def steps(self) -> pd.DataFrame:
        """One row a measured iteration, in the order in which they ran: launch, visit, and seconds of the slowest step."""
        return pd.DataFrame({"launch": self.blocks.launch, "visit": self.blocks.visit, "step_s": self.step}).dropna()


def reduced(samples: pa.Table) -> CaseTimes:
    """Reduce the samples of one case."""
    times = times_of(samples)
    after_backward = (ARRIVAL, AGGREGATE) in times.seconds
    return CaseTimes(times.clock, times.blocks, times.slowest, _by_rank(times), after_backward)


def _by_rank(times: Times) -> pd.DataFrame:
    step = times.phases[times.clock, STEP]
    skew, arrival = times.phases.get((times.clock, SKEW)), times.seconds.get((ARRIVAL, AGGREGATE))
    unknown = np.full(len(times.ranks), np.nan)
    return pd.DataFrame(
        {
            "rank": times.ranks,
            "step_s": nan_median(step),
            "slowest": _share_of_most(step),
            "waits_s": unknown if skew is None else nan_median(skew),
            "last": unknown if arrival is None else _share_of_most(arrival),
        }
    )


def _share_of_most(values: Floats) -> Floats:
    """[ranks]: in what share of the iterations the rank has the largest value."""
    most = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    return np.asarray(np.bincount(most, minlength=values.shape[1]) / len(values))
