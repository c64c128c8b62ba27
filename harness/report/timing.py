"""The times of a run, case by case: a phase's time is the slowest rank's in each iteration; then the statistics over
iterations."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from harness.report.frame import Run
from harness.report.statistics import Summary, nan_median, summarize
from harness.report.times import AGGREGATE, SKEW, STEP, Times, times_of
from harness.schema.record import ARRIVAL, OK

_PHASES = ["case_id", "clock", "phase", *(field.name for field in fields(Summary))]
_RANKS = ["case_id", "rank", "step_s", "slowest", "waits_s", "last"]
_CASES = ["case_id", "clock", "overlap", "launch_spread"]
_STEPS = ["case_id", "launch", "visit", "step_s"]


@dataclass(frozen=True)
class Timing:
    """Of every measured case."""

    phases: pd.DataFrame
    """One row a case, clock and phase, derived ones included; see Summary."""
    ranks: pd.DataFrame
    """One row a case and rank: median seconds of its step, and of its waiting for the last rank; shares of the iterations in
    which its step is the slowest, and in which it enters `aggregate` last."""
    cases: pd.DataFrame
    """One row a case: the clock that sees its work, the share of its communication that is hidden, and by how much, as a share
    of the median, the median steps of its launches scatter (standard deviation; NaN of one launch)."""
    steps: pd.DataFrame
    """One row a case and measured iteration, in the order in which they ran: seconds of the slowest rank's step, by the clock
    that sees its work."""


def timing(run: Run) -> Timing:
    """Reduce a run's samples, one case at a time."""
    phases: list[dict[str, Any]] = []
    ranks: list[pd.DataFrame] = []
    cases: list[dict[str, Any]] = []
    steps: list[pd.DataFrame] = []
    for case_id in run.cases.case_id[run.cases.status == OK]:
        times = times_of(run.raw_samples(case_id))
        phases += [{"case_id": case_id, **row} for row in _summaries(times)]
        ranks.append(_by_rank(times).assign(case_id=case_id))
        cases.append({"case_id": case_id, "clock": times.clock, "overlap": times.overlap, "launch_spread": _spread(times)})
        steps.append(_steps(times).assign(case_id=case_id))
    return Timing(
        phases=pd.DataFrame(phases, columns=_PHASES),
        ranks=pd.concat(ranks, ignore_index=True)[_RANKS] if ranks else pd.DataFrame(columns=_RANKS),
        cases=pd.DataFrame(cases, columns=_CASES),
        steps=pd.concat(steps, ignore_index=True)[_STEPS] if steps else pd.DataFrame(columns=_STEPS),
    )


def _summaries(times: Times) -> Iterator[dict[str, Any]]:
    series = np.stack(list(times.slowest.values()), axis=1)
    for (clock, phase), summary in zip(times.slowest, summarize(series, times.blocks), strict=True):
        yield {"clock": clock, "phase": phase, **asdict(summary)}


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


def _steps(times: Times) -> pd.DataFrame:
    seconds = times.slowest[times.clock, STEP]
    return pd.DataFrame({"launch": times.blocks.launch, "visit": times.blocks.visit, "step_s": seconds}).dropna()


def _share_of_most(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[ranks]: in what share of the iterations the rank has the largest value."""
    most = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    return np.asarray(np.bincount(most, minlength=values.shape[1]) / len(values))


def _spread(times: Times) -> float:
    medians = times.launch_medians((times.clock, STEP))
    return float(medians.std(ddof=1) / np.median(medians)) if len(medians) > 1 else float("nan")
