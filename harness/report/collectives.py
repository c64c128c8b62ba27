"""The collective sweep: latency and bandwidth by message size, of the slowest rank in each iteration."""

from collections.abc import Iterator, Sequence

import pandas as pd

from harness.report.frame import Run
from harness.report.nccl_log import NcclLog
from harness.report.tables import Table
from harness.schema.record import CUDA_BACK_TO_BACK, CUDA_EVENT, CUDA_GRAPH, HOST, HOST_BACK_TO_BACK, NOT_MEASURED

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
_SINGLE, _IN_A_ROW, _GRAPH = (CUDA_EVENT, HOST), (CUDA_BACK_TO_BACK, HOST_BACK_TO_BACK), (CUDA_GRAPH,)
"""Clocks of a single call, of calls in a row, and of a CUDA graph of them; the first that a sweep has is shown."""
_WORDS = {
    HOST: "us: one call after a barrier (host clock)",
    CUDA_EVENT: "us: one call after a barrier, launch included (device clock; the host's stands in collectives.csv)",
    HOST_BACK_TO_BACK: "in a row, us: each of several calls without a barrier between them (clock host_back_to_back)",
    CUDA_BACK_TO_BACK: "in a row, us: each of several calls in a row that the host has launched before the device begins the "
    "first (clock cuda_back_to_back)",
    CUDA_GRAPH: "graph, us: each of as many calls of a CUDA graph (clock cuda_graph)",
}


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


def of_bandwidth(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The clock that bandwidths are shown by, as nccl-tests does that of calls in a row where there is one; and its rows."""
    clock = _first(rows, (*_IN_A_ROW, *_SINGLE))
    return clock, rows[rows["clock"] == clock]


def unmeasured(run: Run) -> list[str]:
    """Sentences on the clocks that settings of the sweep have no number of."""
    rows = run.observations[run.observations.quantity.astype(str) == NOT_MEASURED]
    counted = rows[rows["rank"] == 0].groupby(["setting", "text"], sort=False).subject.nunique()
    return [f" Clock {clock} lacks {count} settings: {reason}." for (clock, reason), count in counted.items()]


def collective_tables(
    rows: pd.DataFrame, log: NcclLog | None = None, *, brief: bool, unmeasured: Sequence[str] = ()
) -> Iterator[Table]:
    """A table a collective and dtype, a row a size; in place and not, one call and several, stand side by side.

    `log` adds what NCCL chose for messages of the size, in any call of the run.
    """
    if rows.empty:
        return
    clocks = [_first(rows, several) for several in (_SINGLE, _IN_A_ROW, _GRAPH)]
    words = [_WORDS[clock] for clock in clocks if clock]
    note = f"{_NOTE} {'; '.join(words)}. Bandwidths: clock {of_bandwidth(rows)[0]}.{''.join(unmeasured)}"
    for (collective, dtype), group in rows.groupby(["collective", "dtype"], sort=False):
        table = _side_by_side(group, clocks, brief)
        if log is not None and len(log.choices):
            name = _IN_NCCL.get(str(collective), "")
            table.insert(2, "NCCL chose", [log.chosen(name, int(size)) for size in table.bytes])
        yield Table(f"Collective: {collective}, {dtype}", table, note)
        note = ""


def _first(rows: pd.DataFrame, clocks: Sequence[str]) -> str:
    """The first of the clocks that some setting has; empty without one."""
    return next((clock for clock in clocks if (rows["clock"] == clock).any()), "")


def _side_by_side(group: pd.DataFrame, clocks: Sequence[str], brief: bool) -> pd.DataFrame:
    sizes = group.drop_duplicates("bytes").sort_values("bytes").set_index("bytes")
    columns = {"bytes": sizes.index.to_series().map(str), "count": sizes["count"].map(str)}
    for (in_place, in_flight), rows in group.groupby(["in_place", "in_flight"], sort=False):
        how = way(bool(in_place), int(in_flight))
        columns |= {f"{how}: {header}": texts for header, texts in _of_way(rows, clocks, brief)}
    checked = group[group["clock"] == group["clock"].iloc[0]].groupby("bytes").elements_checked.sum()
    return pd.DataFrame({**columns, "elements checked": checked.map("{:.0f}".format)}).reindex(sizes.index).fillna("")


def _of_way(rows: pd.DataFrame, clocks: Sequence[str], brief: bool) -> Iterator[tuple[str, pd.Series]]:
    """(header, texts by bytes) of the settings of one way."""
    by_clock = {clock: own.drop_duplicates("bytes").set_index("bytes") for clock, own in rows.groupby("clock", sort=False)}
    single, in_a_row, graph = (by_clock.get(clock) for clock in clocks)
    if single is not None:
        yield "us", single.median_s.map(_microseconds)
    if single is not None and not brief:
        yield "p95, us", single.p95_s.map(_microseconds)
    if in_a_row is not None:
        yield "in a row, us", in_a_row.median_s.map(_microseconds)
    if graph is not None:
        yield "graph, us", graph.median_s.map(_microseconds)
    bandwidths = in_a_row if clocks[1] else single
    if bandwidths is not None and not brief:
        yield "algbw", bandwidths.algbw_gbs.map(_gigabytes)
    if bandwidths is not None:
        yield "busbw", bandwidths.busbw_gbs.map(_gigabytes)


def way(in_place: bool, in_flight: int) -> str:
    """How a message of a given size is sent."""
    return ("in place" if in_place else "out of place") + (f" x{in_flight}" if in_flight > 1 else "")


def _gigabytes(per_second: float) -> str:
    return f"{per_second:.3g}" if per_second >= 1e-3 else "<0.001"


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"
