"""The collective sweep: latency and bandwidth by message size, of the slowest rank in each iteration."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.nccl_log import NcclLog
from harness.report.tables import Table

SETTING = ["collective", "dtype", "in_place", "in_flight", "bytes"]
"""What a row of the sweep is one of."""
_CARRIED = {
    "all_reduce": 2,
    "reduce_scatter": 1,
    "all_gather": 1,
}
"""busbw over algbw of n ranks is so many times (n - 1) / n (nccl-tests, doc/PERFORMANCE.md)."""
_IN_NCCL = {"all_reduce": "AllReduce", "reduce_scatter": "ReduceScatter", "all_gather": "AllGather"}
"""Names of the collectives in NCCL's log."""
_NOTE = (
    "Microseconds: median over iterations of the slowest rank's, until all calls in flight (x4: four) are done. algbw, GB/s: "
    "bytes of all calls over that; busbw, GB/s: what each link carries, as nccl-tests has it; 1 GB = 1e9 B. Each rank's "
    "result of crafted data was exactly right in every element, before and after the timed calls."
)
_CLOCKS = {"host": " Host clock.", "cuda_event": " Device clock; the host's stands in collectives.csv."}


def collectives(run: Run) -> pd.DataFrame:
    """One row a setting and clock: count, iterations, seconds (median, p95, min), algbw and busbw in GB/s, elements checked."""
    timed = run.collectives[~run.collectives.warm_up.astype(bool)] if len(run.collectives) else run.collectives
    if timed.empty:
        return pd.DataFrame()
    keys = [*SETTING, "subject", "clock", "count"]
    timed = timed.astype({"collective": str, "dtype": str, "subject": str, "clock": str})
    slowest = timed.groupby([*keys, "iteration"], sort=False).seconds.max().groupby(keys, sort=False)
    rows = slowest.agg(iterations="size", median_s="median", p95_s=lambda s: s.quantile(0.95), min_s="min").reset_index()
    moved = rows.in_flight * rows.bytes / 1e9
    ranks = timed["rank"].nunique()
    rows["algbw_gbs"] = moved / rows.median_s
    rows["busbw_gbs"] = rows.algbw_gbs * rows.collective.map(_CARRIED) * (ranks - 1) / ranks
    checked = run.observations[run.observations.quantity == "elements checked"]
    rows["elements_checked"] = rows.subject.map(checked.groupby(checked.subject.astype(str)).value.sum()).fillna(0)
    return rows.drop(columns="subject")


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """On CUDA the rows of the device's clock, elsewhere the host's."""
    clock = "cuda_event" if (rows["clock"] == "cuda_event").any() else "host"
    return rows[rows["clock"] == clock]


def collective_tables(rows: pd.DataFrame, log: NcclLog | None = None, *, brief: bool) -> Iterator[Table]:
    """A table a collective and dtype, a row a size; in place and not, one call and several, stand side by side.

    `log` adds what NCCL chose for messages of the size, in any call of the run.
    """
    if rows.empty:
        return
    kept, first = shown(rows), True
    for (collective, dtype), group in kept.groupby(["collective", "dtype"], sort=False):
        note = _NOTE + _CLOCKS.get(str(group["clock"].iloc[0]), "") if first else ""
        table = _side_by_side(group, brief)
        if log is not None and len(log.choices):
            name = _IN_NCCL.get(str(collective), "")
            table.insert(2, "NCCL chose", [log.chosen(name, int(size)) for size in table.bytes])
        yield Table(f"Collective: {collective}, {dtype}", table, note)
        first = False


def _side_by_side(group: pd.DataFrame, brief: bool) -> pd.DataFrame:
    sizes = group.drop_duplicates("bytes").sort_values("bytes").set_index("bytes")
    columns = {"bytes": sizes.index.to_series().map(str), "count": sizes["count"].map(str)}
    for (in_place, in_flight), rows in group.groupby(["in_place", "in_flight"], sort=False):
        own, how = rows.drop_duplicates("bytes").set_index("bytes"), way(bool(in_place), int(in_flight))
        columns[f"{how}: us"] = own.median_s.map(_microseconds)
        if not brief:
            columns |= {f"{how}: p95, us": own.p95_s.map(_microseconds), f"{how}: algbw": own.algbw_gbs.map(_gigabytes)}
        columns[f"{how}: busbw"] = own.busbw_gbs.map(_gigabytes)
    checked = group.groupby("bytes").elements_checked.sum().map("{:.0f}".format)
    return pd.DataFrame({**columns, "elements checked": checked}).reindex(sizes.index).fillna("")


def way(in_place: bool, in_flight: int) -> str:
    """How a message of a given size is sent."""
    return ("in place" if in_place else "out of place") + (f" x{in_flight}" if in_flight > 1 else "")


def _gigabytes(per_second: float) -> str:
    return f"{per_second:.3g}" if per_second >= 1e-3 else "<0.001"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"
