"""The price of synchronization: what each policy of waiting costs against none, case by case."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.report.case_times import CaseTimes
from harness.report.frame import Run
from harness.report.labels import columns_but_of, labelled
from harness.report.statistics import CONFIDENCE, Floats, student_quantile
from harness.report.text import milliseconds
from harness.schema.record import OK

NONE = "none"
"""The policy that the others are held against."""
COSTS, SAVES, UNTOLD, TOO_FEW = "costs", "saves", "not distinguishable", "too few launches"
_FEWEST = 3
"""Differences that an interval is made of."""


@dataclass(frozen=True)
class Difference:
    """One case's step less another's, in the unit of what was compared: seconds, or logarithms of them."""

    mean: float
    """Over the units."""
    low: float
    """Lower end of the interval; NaN where there are too few units."""
    high: float
    units: int
    """Launches; or where there is one launch, its visits."""
    of: str
    """`launches` or `visits`."""

    @property
    def verdict(self) -> str:
        """COSTS, SAVES, UNTOLD, or TOO_FEW for any of them."""
        if np.isnan(self.low):
            return TOO_FEW
        return COSTS if self.low > 0 else SAVES if self.high < 0 else UNTOLD


def price(run: Run) -> pd.DataFrame:
    """One row a measured case under a policy, whose like under `none` was measured too; indexed by case_id. Seconds.

    The case's labels, then none_s, step_s, cost_s, low_s, high_s, units, of, verdict, gradient_bytes.
    """
    cases = run.cases[run.cases.status == OK]
    if cases.sync.nunique() < 2 or NONE not in set(cases.sync):
        return pd.DataFrame()
    rows = {ours: _row(run.times(ours), run.times(theirs)) for ours, theirs in _pairs(cases)}
    sizes = cases.set_index("case_id").gradient_bytes
    priced = pd.DataFrame.from_dict(rows, orient="index")
    return labelled(run.cases).join(priced.assign(gradient_bytes=sizes.reindex(priced.index)), how="inner")


def price_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For a person."""
    return rows[list(rows.columns[: list(rows.columns).index("none_s")])].assign(
        **{
            "gradient, KiB": (rows.gradient_bytes / 2**10).map("{:.0f}".format),
            "none, ms": rows.none_s.map(milliseconds),
            "step, ms": rows.step_s.map(milliseconds),
            "costs, ms": [_interval(*ends) for ends in zip(rows.cost_s, rows.low_s, rows.high_s, strict=True)],
            "of none": (rows.cost_s / rows.none_s).map("{:+.1%}".format),
            "units": rows.units.astype(str) + " " + rows.of,
            "verdict": rows.verdict,
        }
    )


def price_note(rows: pd.DataFrame) -> str:
    """How to read it, and how much of it can be told."""
    told, tried = int(rows.verdict.isin((COSTS, SAVES)).sum()), int((rows.verdict != TOO_FEW).sum())
    by_chance = "; of as many equal ones about one in twenty would be, by chance" if told else ""
    return (
        f"Each policy's step less that of sync={NONE}, launch by launch (order=interleaved: round by round): the mean, and its "
        "95 % interval by Student's t. "
        f"{told} of {tried} differences are distinguishable from none{by_chance}."
    )


def _pairs(cases: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(case under a policy, its like under none)."""
    like = columns_but_of(cases, ["sync"])
    keys = cases[like].astype(object).map(str).agg("|".join, axis=1)
    without = dict(zip(keys[cases.sync == NONE], cases.case_id[cases.sync == NONE], strict=True))
    for key, case_id, policy in zip(keys, cases.case_id, cases.sync, strict=True):
        if policy != NONE and key in without:
            yield case_id, without[key]


def _row(policy: CaseTimes, none: CaseTimes) -> dict[str, object]:
    ours, theirs = policy.visit_medians(), none.visit_medians()
    found = difference(ours, theirs)
    return {
        "none_s": float(np.median(list(theirs.values()))),
        "step_s": float(np.median(list(ours.values()))),
        "cost_s": found.mean,
        "low_s": found.low,
        "high_s": found.high,
        "units": found.units,
        "of": found.of,
        "verdict": found.verdict,
    }


def difference(
    ours: dict[tuple[int, int], float], theirs: dict[tuple[int, int], float], confidence: float = CONFIDENCE
) -> Difference:
    """Visit is held against visit, so that what drifts from visit to visit falls out; then Student's interval of the mean.

    Over launches, each of which counts once, for what varies between them is what another run would show; within one launch
    over its visits, which says nothing of the next launch.
    """
    apart = pd.Series({visit: ours[visit] - theirs[visit] for visit in ours if visit in theirs})
    by_launch = apart.groupby(level=0).mean()
    units, of = (by_launch, "launches") if len(by_launch) > 1 else (apart, "visits")
    low, high = _student(units.to_numpy(), confidence)
    return Difference(float(units.mean()), low, high, len(units), of)


def _student(values: Floats, confidence: float) -> tuple[float, float]:
    if len(values) < _FEWEST:
        return float("nan"), float("nan")
    reach = student_quantile(len(values), confidence) * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - reach, float(values.mean()) + reach


def _interval(middle: float, low: float, high: float) -> str:
    if np.isnan(low):
        return f"{_signed(middle)} (no interval)"
    return f"{_signed(middle)} [{_signed(low)}, {_signed(high)}]"


def _signed(seconds: float) -> str:
    return ("-" if seconds < 0 else "+") + milliseconds(abs(seconds))
