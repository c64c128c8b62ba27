"""What probes saw, on rank 0, where no story tells it."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.staleness import reads, staleness_table
from harness.report.tables import Table
from harness.report.text import number

SUMMATION_ORDER = "summation_order"


def probe_tables(run: Run) -> list[Table]:
    """A table a probe, and one of the questions without an answer."""
    told = set(run.collectives.probe.astype(str))  # by tables of their own
    by_probe = [] if run.observations.empty else [pair for pair in _by_probe(run) if pair[0] not in told]
    found = [table for probe, rows in by_probe for table in _tables(probe, rows)]
    unanswered = run.probes[run.probes.status != "ok"] if len(run.probes) else run.probes
    if len(unanswered):
        found.append(Table("Questions without an answer", unanswered[["probe", "subject", "status", "reason"]]))
    return found


def _by_probe(run: Run) -> list[tuple[str, pd.DataFrame]]:
    rows = run.observations
    return [(str(probe), group) for probe, group in rows.groupby(rows.probe.astype(str), sort=False)]


def _tables(probe: str, rows: pd.DataFrame) -> Iterator[Table]:
    """A row a subject and setting; settings of which the same quantities were seen share a table."""
    if probe == "staleness":
        yield from [staleness_table(rows)] if len(reads(rows)) else []
        return
    wide = _wide(rows[rows["rank"] == 0])
    kinds = wide.notna().apply(tuple, axis=1)
    for kind in kinds.drop_duplicates():
        table = wide[kinds == kind].dropna(axis=1, how="all")
        yield Table(f"Probe: {probe}", table.reset_index())


def _wide(own: pd.DataFrame) -> pd.DataFrame:
    """Subject and setting to quantities, as texts; what was seen several times as its median."""
    keys = [own.subject.astype(str), own.setting, own.quantity]
    summed = own.groupby(keys, sort=False).agg(value=("value", "median"), count=("value", "size"), text=("text", "first"))
    named = summed.reset_index()
    named["quantity"] += named["count"].map(lambda count: f", median of {count}" if count > 1 else "")
    named["shown"] = named.text.where(named.text != "", named.value.map(number))
    return named.pivot_table(index=["subject", "setting"], columns="quantity", values="shown", aggfunc="first", sort=False)
