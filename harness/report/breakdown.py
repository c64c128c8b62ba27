"""Where the time of a step goes, and which rank the others wait for."""

import pandas as pd

from harness.report.cost import CLOCKS, labels_of, times_text
from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import milliseconds
from harness.report.timing import Timing

_PHASES = (
    "forward",
    "backward",
    "local_gradient",
    "sync",
    "aggregate",
    "skew",
    "transfer",
    "unscale",
    "clip",
    "step",
    "exposed",
)
_NAMES = {"local_gradient": "local gradient", "skew": "of it skew", "transfer": "of it transfer"}


def breakdown_table(costs: pd.DataFrame, timing: Timing) -> pd.DataFrame:
    """For a person: the median of every phase, of the slowest rank in each iteration."""
    columns = {
        _NAMES.get(phase, phase) + header: times_text(costs[f"{clock}.{phase}.median"])
        for clock, header in CLOCKS.items()
        for phase in _PHASES
        if f"{clock}.{phase}.median" in costs
    }
    overlap = timing.cases.set_index("case_id").overlap.reindex(costs.index)
    columns["hidden communication"] = overlap.map(lambda share: "" if pd.isna(share) else f"{max(0.0, share):.0%}")
    return pd.concat([labels_of(costs), pd.DataFrame(columns)], axis=1)


def straggler_table(run: Run, timing: Timing) -> pd.DataFrame:
    """For a person: one row a case that ran on several ranks; empty where none did."""
    counts = timing.ranks.groupby("case_id").case_id.transform("size")
    several = timing.ranks[counts > 1]
    if several.empty:
        return pd.DataFrame()
    rows = {case_id: _straggler(ranks.reset_index(drop=True)) for case_id, ranks in several.groupby("case_id", sort=False)}
    table = labelled(run.cases).join(pd.DataFrame(rows).T, how="right")
    uncertain = run.launched.groupby("case_id").clock_uncertainty_s.max().reindex(table.index)
    return table.assign(**{"clocks known to, ms": uncertain.map(lambda value: milliseconds(value) if value else "")})


def _straggler(ranks: pd.DataFrame) -> dict[str, str]:
    slow, typical = ranks.loc[ranks.slowest.idxmax()], ranks.step_s.median()
    told = {
        "slowest step": f"rank {slow['rank']:.0f} in {slow.slowest:.0%}",
        "its step, ms": milliseconds(slow.step_s),
        "the median rank's, ms": milliseconds(typical),
    }
    if ranks["last"].isna().all():
        return told | {"last to aggregate": "", "waits the longest, ms": ""}
    late, waiting = ranks.loc[ranks["last"].idxmax()], ranks.loc[ranks.waits_s.idxmax()]
    return told | {
        "last to aggregate": f"rank {late['rank']:.0f} in {late['last']:.0%}",
        "waits the longest, ms": f"rank {waiting['rank']:.0f}: {milliseconds(waiting.waits_s)}",
    }
