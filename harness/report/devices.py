"""What the GPUs did while the cases ran: a table, and the slow one among them in words."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import mebibytes
from harness.report.trust import doubts

_FEWEST = 5
"""Samples of a busy GPU without which nothing is said of its clock."""
_SLOWER = 0.95
"""Of the others' clock: below it, a GPU is slow."""
_HELD = 0.05
"""Share of the samples in which a clock is held down, from which on it is said."""
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
    """Name the GPU that was slower than the others of its kind, and the one that was held back; of several, the worst."""
    if busy.empty:
        return
    kinds = {rank: facts.get("device_name") for rank, facts in enumerate(run.environment.get("ranks", []))}
    rows = busy.assign(kind=busy["rank"].map(kinds), others=[_others(row, busy, kinds) for row in busy.itertuples()])
    slow = rows[rows.sm_mhz_median < _SLOWER * rows.others]
    held = rows[(rows[["slowed_by_power", "slowed_by_heat"]].max(axis=1) > _HELD) & ~rows["rank"].isin(slow["rank"])]
    if len(slow):
        row = slow.loc[(slow.sm_mhz_median / slow.others).idxmin()]
        lower = 1 - row.sm_mhz_median / row.others
        yield (
            f"Rank {row['rank']}'s GPU ran at a median SM clock of {row.sm_mhz_median:.0f} MHz in {row.case_id}, "
            f"{lower:.1%} below the others' {row.others:.0f} MHz ({_state(row)}).{_likewise(slow)}"
        )
    if len(held):
        row = held.loc[held[["slowed_by_power", "slowed_by_heat"]].max(axis=1).idxmax()]
        yield (
            f"Rank {row['rank']}'s GPU was held below its clocks in {row.case_id}, "
            f"at a median of {row.sm_mhz_median:.0f} MHz ({_state(row)}).{_likewise(held)}"
        )


def _others(row: object, rows: pd.DataFrame, kinds: dict[int, object]) -> float:
    """Median SM clock of the other GPUs of this kind in the same case and launch; NaN where there is none."""
    kind = kinds.get(row.rank)  # type: ignore[attr-defined]
    same = rows[(rows.case_id == row.case_id) & (rows.launch == row.launch) & (rows.uuid != row.uuid)]  # type: ignore[attr-defined]
    alike = same[same["rank"].map(kinds) == kind] if kind is not None else same
    return float(alike.drop_duplicates("uuid").sm_mhz_median.median())


def _state(row: pd.Series) -> str:
    reasons = [reason.rpartition(" ") for reason in row.slowed_by.split("; ") if reason]
    held = [f"{name} in {float(share):.0%} of {row.samples - row.idle} samples" for name, _, share in reasons]
    figures = [(row.power_w_max, "W at most"), (row.temperature_c_max, "C at most")]
    return ", ".join([*held, *(f"{value:.0f} {unit}" for value, unit in figures if value == value)])


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
        "held down": by_case[["slowed_by_power", "slowed_by_heat"]].max().max(axis=1).map(_share),
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
