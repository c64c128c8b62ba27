"""What probes saw, on rank 0, where no story tells it."""

import pandas as pd

from harness.report.frame import Run
from harness.report.staleness import staleness_table
from harness.report.tables import Table
from harness.report.text import number


def probe_tables(run: Run) -> list[Table]:
    """A table a probe, and one of the questions without an answer."""
    found = [] if run.observations.empty else [_table(probe, rows) for probe, rows in _by_probe(run)]
    unanswered = run.probes[run.probes.status != "ok"] if len(run.probes) else run.probes
    if len(unanswered):
        found.append(Table("Questions without an answer", unanswered[["probe", "subject", "status", "reason"]]))
    return found


def _by_probe(run: Run) -> list[tuple[str, pd.DataFrame]]:
    rows = run.observations
    return [(str(probe), group) for probe, group in rows.groupby(rows.probe.astype(str), sort=False)]


def _table(probe: str, rows: pd.DataFrame) -> Table:
    if probe == "staleness":
        return staleness_table(rows)
    own = rows[rows["rank"] == 0]
    keys = [own.subject.astype(str), own.setting, own.quantity]
    summed = own.groupby(keys, sort=False).agg(value=("value", "median"), count=("value", "size"), text=("text", "first"))
    table = summed.reset_index()
    quantity = table.quantity + table["count"].map(lambda count: f", median of {count}" if count > 1 else "")
    shown = table.assign(quantity=quantity, value=table.value.map(number))[["subject", "setting", "quantity", "value", "text"]]
    return Table(f"Probe: {probe}", shown if (shown.text != "").any() else shown.drop(columns="text"))
