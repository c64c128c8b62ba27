"""What a case cost: a phase's time is the slowest rank's in each iteration; then the statistics over iterations."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import milliseconds

STATISTICS = ("median", "iqr", "p95")
_PLAIN = ("second_forward", "peak_memory_bytes")
"""Columns that are no statistics of a phase."""
_PHASES = ("forward", "backward", "local_gradient", "sync", "aggregate", "unscale", "clip", "step")


def cost(run: Run) -> pd.DataFrame:
    """One row a measured case: seconds, in columns `<clock>.<phase>.<statistic>`; memory in bytes."""
    measured = run.cases[run.cases.status == "ok"]
    if measured.empty:
        return pd.DataFrame()
    rows = pd.DataFrame({case_id: _statistics(run.samples_of(case_id)) for case_id in measured.case_id}).T
    return labelled(run.cases).join(rows, how="right").join(measured.set_index("case_id")[list(_PLAIN)])


def _statistics(samples: pd.DataFrame) -> pd.Series:
    """`<clock>.<phase>.<statistic>` to seconds, warm-ups left out."""
    timed = samples[~samples.warm_up]
    slowest = timed.groupby(["clock", "phase", "iteration"], observed=True).seconds.max()
    grouped = slowest.groupby(["clock", "phase"], observed=True)
    table = pd.DataFrame(
        {
            "median": grouped.median(),
            "iqr": grouped.quantile(0.75) - grouped.quantile(0.25),
            "p95": grouped.quantile(0.95),
        }
    ).stack()
    table.index = pd.Index([".".join(key) for key in table.index])
    return table


def cost_table(costs: pd.DataFrame, *, brief: bool = False) -> pd.DataFrame:
    """For a person: `median (IQR) p95` in ms, or the median alone; host clock, and the device's own beside it on CUDA."""
    clocks = [clock for clock in ("host", "cuda_event") if f"{clock}.step.median" in costs]
    columns = {
        _header(clock, phase): costs.apply(_cell, axis=1, key=f"{clock}.{phase}", brief=brief)
        for clock in clocks
        for phase in _PHASES
        if f"{clock}.{phase}.median" in costs
    }
    labels = costs[[column for column in costs.columns if "." not in column and column not in _PLAIN]]
    parameters = costs[[c for c in costs.columns if c.split(".")[0] not in ("host", "cuda_event") and "." in c]]
    memory = (costs.peak_memory_bytes / 2**20).map("{:.0f}".format)
    columns["second forward"] = costs.second_forward.map({True: "yes", False: ""})
    return pd.concat([labels, parameters, pd.DataFrame(columns), memory.rename("peak memory, MiB")], axis=1)


def _header(clock: str, phase: str) -> str:
    return phase.replace("_", " ") + (", device ms" if clock == "cuda_event" else ", ms")


def _cell(row: pd.Series, key: str, brief: bool) -> str:
    median, iqr, p95 = (row.get(f"{key}.{statistic}") for statistic in STATISTICS)
    if median is None or pd.isna(median):
        return ""
    if brief:
        return milliseconds(median)
    return f"{milliseconds(median)} ({milliseconds(iqr)}) {milliseconds(p95)}"
