"""GPUs while the cases ran: a table, and the slow one among them in words."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import mebibytes
from harness.report.trust import doubts

_FEWEST = 5
"""Fewest samples of a busy GPU that say anything of its clock."""
_SLOWER = 0.95
"""Share of the others' clock below which a GPU is slow."""
_REDUCED = 0.05
"""Share of samples with a reduced clock above which it is reported."""
NOTE = (
    "Read by NVML in the measured iterations, while a GPU was not idle: the smallest and the largest median of all ranks, and "
    "extremes. Process: device memory as NVML counts it, with NCCL's buffers and the CUDA context, of the rank with the most; "
    "reserved: the allocator's, with its cache. Both stay between cases, so they grow along the order of the cases."
)


def machine_doubts(run: Run) -> list[str]:
    """Reasons to trust the run's times less: of its environment, and of its GPUs during the cases."""
    rows = run.every("devices")
    busy = rows[rows.samples - rows.idle >= _FEWEST]
    return [*doubts(run.environment, sampled=len(busy) > 0), *slow_gpus(busy, run)]


def slow_gpus(busy: pd.DataFrame, run: Run) -> Iterator[str]:
    """Name the GPU that was slower than the others of its kind, and one with reduced clocks; of several, the worst."""
    if busy.empty:
        return
    models = {rank: str(facts.get("device_name")) for rank, facts in enumerate(run.environment.get("ranks", []))}
    rows = busy.assign(model=busy["rank"].map(models).fillna("")).reset_index(drop=True)
    rows["others"] = _of_others(rows)
    slow = rows[rows.sm_mhz_median < _SLOWER * rows.others]
    reduced = rows[(rows[["slowed_by_power", "slowed_by_heat"]].max(axis=1) > _REDUCED) & ~rows["rank"].isin(slow["rank"])]
    if len(slow):
        row = slow.loc[(slow.sm_mhz_median / slow.others).idxmin()]
        lower = 1 - row.sm_mhz_median / row.others
        yield (
            f"Rank {row['rank']}'s GPU ran at a median SM clock of {row.sm_mhz_median:.0f} MHz in {row.case_id}, "
            f"{lower:.1%} below the others' {row.others:.0f} MHz ({_state(row)}).{_likewise(slow)}"
        )
    if len(reduced):
        row = reduced.loc[reduced[["slowed_by_power", "slowed_by_heat"]].max(axis=1).idxmax()]
        yield (
            f"Rank {row['rank']}'s GPU ran at reduced clocks in {row.case_id}, "
            f"at a median of {row.sm_mhz_median:.0f} MHz ({_state(row)}).{_likewise(reduced)}"
        )


def _of_others(rows: pd.DataFrame) -> pd.Series:
    """Median SM clock of the other GPUs of a model in the same case and launch; NaN where there is none."""
    gpus = rows.dropna(subset="sm_mhz_median").drop_duplicates(_BESIDE)
    others = gpus.groupby(_BESIDE[:-1], sort=False).sm_mhz_median.transform(_without_one)
    known = gpus[_BESIDE].assign(others=others)
    return rows[_BESIDE].merge(known, on=_BESIDE, how="left").others


_BESIDE = ["case_id", "launch", "model", "uuid"]
"""Columns that name a GPU in a case; all but the last: the GPUs that it is compared with."""


def _without_one(values: pd.Series) -> NDArray[np.float64]:
    """Median of all values but one, for each of them."""
    ordered, left = np.sort(values.to_numpy(dtype=np.float64)), len(values) - 1
    if not left:
        return np.full(1, np.nan)
    place = np.searchsorted(ordered, values)
    middle = [ordered[at + (at >= place)] for at in ((left - 1) // 2, left // 2)]
    return np.asarray((middle[0] + middle[1]) / 2)


def _state(row: pd.Series) -> str:
    reasons = [f"clocks reduced: {row.slowed_by}"] if row.slowed_by else []
    figures = [(row.power_w_max, "W at most"), (row.temperature_c_max, "C at most")]
    measured = [f"{value:.0f} {unit}" for value, unit in figures if value == value]
    return "; ".join([*reasons, *measured, f"{row.samples - row.idle} samples"])


def _likewise(rows: pd.DataFrame) -> str:
    others = rows["rank"].nunique() - 1
    return f" {others} other rank{'s' * (others > 1)} likewise." if others else ""


def device_table(run: Run) -> pd.DataFrame:
    """For a person: one row a case, over all ranks; empty for a run without GPUs."""
    if run.devices.empty:
        return pd.DataFrame()
    by_case = run.devices.groupby("case_id", sort=False)
    columns = {
        "samples": by_case.samples.max(),
        "SM clock, MHz": _span(by_case.sm_mhz_median),
        "memory clock, MHz": _span(by_case.memory_mhz_median),
        "power, W": _span(by_case.power_w_median),
        "hottest, C": by_case.temperature_c_max.max().map(_whole),
        "utilization, %": _span(by_case.utilization_median),
        "clocks reduced": by_case[["slowed_by_power", "slowed_by_heat"]].max().max(axis=1).map(_share),
        "process, MiB": by_case.process_bytes.max().map(lambda value: "" if pd.isna(value) else mebibytes(value)),
        "reserved, MiB": by_case.reserved_bytes.max().map(mebibytes),
        "allocation retries": by_case.alloc_retries.sum(),
    }
    return labelled(run.cases).join(pd.DataFrame(columns), how="right")


def _span(values: "pd.api.typing.SeriesGroupBy") -> pd.Series:
    smallest, largest = values.min().map(_whole), values.max().map(_whole)
    return smallest.where(smallest == largest, smallest + " to " + largest)


def _whole(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"


def _share(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.0%}"
