"""Where a figure should not be trusted, by the samples themselves, in plain words."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from harness.report.frame import Run
from harness.report.timing import Timing
from harness.schema.record import CUDA_QUEUED

_SPREAD = 0.10
"""Of the median: an interquartile range, or a standard deviation over launches, beyond which pyperf calls a benchmark
unstable."""
_FEW = 20
"""Iterations below which p95 is the largest of them, and the interval of the median too narrow."""
_WORDS = {
    "few iterations": f"fewer than {_FEW} iterations: p95 and p99 are the largest few, and the median's interval is too narrow",
    "spread": f"the interquartile range is over {_SPREAD:.0%} of the median",
    "trend": "the time changes from the first iterations to the last: it had not settled, or the machine's speed drifted",
    "two modes": "times gather around two values, and the median lies at or between them",
    "launches differ": f"the launches' medians scatter by over {_SPREAD:.0%} (standard deviation)",
    "not precise": "the time or the iterations allowed were over before the median was known as well as until.relative asks",
    "left out": "device times without launches (cuda_queued) lack so many iterations: the device began before the host had "
    "launched all",
    "clocks": "the clocks of the hosts are known less well than the skew is large",
    "bits differ": "rank 0's gradient has other bits in another launch; Discrepancy shows the launch that is furthest from "
    "each reference, Norms by parameter group the one that is furthest from `reference`, other tables the first launch",
}
"""What the short words of a table mean."""


def cautions(run: Run, timing: Timing) -> pd.DataFrame:
    """One row a case and caution: case_id, caution (short), detail."""
    steps = timing.phases.merge(timing.cases, on=["case_id", "clock"])
    steps = steps[steps.phase == "step"]
    rows = [(row.case_id, *told) for row in steps.itertuples() for told in _of_step(row)]
    rows += [
        (case_id, "not precise", "") for case_id in run.launched[run.launched.stop_reason.isin(("budget", "limit"))].case_id
    ]
    rows += [(case_id, "left out", detail) for case_id, detail in _left_out(timing)]
    rows += [(case_id, "clocks", "") for case_id in _uncertain(run, timing)]
    rows += [(case_id, "bits differ", "") for case_id in _unlike_bits(run)]
    return pd.DataFrame(rows, columns=["case_id", "caution", "detail"]).drop_duplicates(
        ["case_id", "caution"], ignore_index=True
    )


def short(cautions: pd.DataFrame) -> pd.Series:
    """A text for each case, indexed by case_id."""
    told = (cautions.caution + " " + cautions.detail).str.strip()
    return told.groupby(cautions.case_id).agg("; ".join)


def remarks(run: Run, cautions: pd.DataFrame) -> list[str]:
    """What is true of the whole run, and what the short words mean, with the number of cases."""
    lines = list(_of_run(run)) if len(run.cases) else []
    counted = cautions.groupby("caution", sort=False).case_id.nunique()
    return lines + [f"{word} ({count} case{'s' * (count > 1)}): {_WORDS[word]}." for word, count in counted.items()]


def _of_run(run: Run) -> Iterator[str]:
    if run.config.launches == 1:
        yield (
            "One launch: its intervals say nothing of another launch, which may differ by far more; launches=5 tells, and can "
            "be compared."
        )
    if run.config.warm_up == 0 and run.environment.get("backend") == "nccl":
        yield (
            "warm_up=0 under NCCL: the first iteration also connects the channels that its message sizes are the first to use; "
            "warm_up=2 leaves that out."
        )


def _of_step(row: Any) -> Iterator[tuple[str, str]]:
    if row.count < _FEW * row.launches:
        yield "few iterations", f"{row.count / row.launches:.0f}"
    if row.iqr > _SPREAD * row.median:
        yield "spread", f"{row.iqr / row.median:.0%}"
    if row.trend:
        yield "trend", f"{row.trend:+.0%}"
    if row.two_modes:
        yield "two modes", ""
    if row.launch_spread > _SPREAD:
        yield "launches differ", f"{row.launch_spread:.0%}"


def _left_out(timing: Timing) -> list[tuple[str, str]]:
    """Cases with iterations in which a hold ended early, and how many of how many."""
    steps = timing.phases[timing.phases.phase == "step"]
    counted = steps.pivot(index="case_id", columns="clock", values="count")
    if CUDA_QUEUED not in counted:
        return []
    made, kept = counted.drop(columns=CUDA_QUEUED).max(axis=1), counted[CUDA_QUEUED]
    return [(case_id, f"{made[case_id] - kept[case_id]:.0f} of {made[case_id]:.0f}") for case_id in kept.index[kept < made]]


def _uncertain(run: Run, timing: Timing) -> list[str]:
    skew = timing.phases[timing.phases.phase == "skew"].set_index("case_id")["median"]
    known = run.launched.groupby("case_id").clock_uncertainty_s.max().reindex(skew.index)
    return list(skew.index[(known > 0) & (known > skew)])


def _unlike_bits(run: Run) -> list[str]:
    different = run.launched[run.launched.status == "ok"].groupby("case_id", sort=False).gradient_sha256.nunique()
    return list(different.index[different > 1])
