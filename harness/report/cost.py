"""What a case cost: its step with the statistics over iterations, and its memory."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import mebibytes, milliseconds
from harness.report.timing import Timing
from harness.schema.record import CUDA_EVENT, CUDA_QUEUED, HOST, OK

STATISTICS = ("median", "low", "high", "iqr", "p95", "p99", "min", "outliers")
CLOCKS = {CUDA_EVENT: ", device ms", CUDA_QUEUED: ", device without launches ms", HOST: ", ms"}
"""Clocks of the columns, and what a header says of them: on CUDA the device's with and without the host's launches."""
_PLAIN = ("second_forward", "peak_memory_bytes")
"""Columns that are no statistics of a phase."""


def cost(run: Run, timing: Timing) -> pd.DataFrame:
    """One row a measured case: seconds, in columns `<clock>.<phase>.<statistic>`; memory in bytes. Indexed by case_id."""
    measured = run.cases[run.cases.status == OK].set_index("case_id")
    if measured.empty:
        return pd.DataFrame()
    columns = {
        f"{clock}.{phase}.{statistic}": rows.set_index("case_id")[statistic]
        for (clock, phase), rows in timing.phases.groupby(["clock", "phase"], sort=False)
        for statistic in STATISTICS
    }
    wide = pd.DataFrame(columns).reindex(measured.index)
    return labelled(run.cases).join(wide, how="right").join(measured[list(_PLAIN)])


def cost_table(costs: pd.DataFrame, cautions: pd.Series, *, brief: bool = False) -> pd.DataFrame:
    """For a person: the step, with its statistics or without; `cautions` is a text for each case, indexed by case_id."""
    columns: dict[str, pd.Series] = {}
    for clock, header in CLOCKS.items():
        if f"{clock}.step.median" in costs:
            columns |= _brief(costs, clock, header) if brief else _statistics(costs, clock, header)
    columns["second forward"] = costs.second_forward.map({True: "yes", False: ""})
    if "cuda_event.step.median" in costs:  # a CPU process's resident set also holds what earlier cases and imports have left
        columns["peak allocated, MiB"] = costs.peak_memory_bytes.map(mebibytes)
    columns["caution"] = cautions.reindex(costs.index).fillna("")
    return pd.concat([labels_of(costs), pd.DataFrame(columns)], axis=1)


def labels_of(costs: pd.DataFrame) -> pd.DataFrame:
    """The columns that name a case."""
    return costs[[column for column in costs.columns if column not in _PLAIN and column.split(".")[0] not in CLOCKS]]


def times_text(values: pd.Series) -> pd.Series:
    """Seconds as ms for a person; empty where there are none."""
    return values.map(lambda value: "" if pd.isna(value) else milliseconds(value))


def _count_text(count: float) -> str:
    return "" if pd.isna(count) else f"{count:.0f}"


def _statistics(costs: pd.DataFrame, clock: str, header: str) -> dict[str, pd.Series]:
    step = {name: times_text(costs[f"{clock}.step.{name}"]) for name in STATISTICS if name != "outliers"}
    with_interval = step["median"] + " [" + step["low"] + ", " + step["high"] + "]"
    return {
        f"step{header}": with_interval.where(step["low"] != "", step["median"]),
        f"IQR{header}": step["iqr"],
        f"p95{header}": step["p95"],
        f"p99{header}": step["p99"],
        f"min{header}": step["min"],
        f"outliers{header.removesuffix('ms').rstrip(' ,')}": costs[f"{clock}.step.outliers"].map(_count_text),
    }


def _brief(costs: pd.DataFrame, clock: str, header: str) -> dict[str, pd.Series]:
    return {
        f"{name}{header}": times_text(costs[f"{clock}.{key}"]) for name, key in (("step", "step.median"), ("p95", "step.p95"))
    }
