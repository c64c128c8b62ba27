"""What the Parquet files of a run directory hold, and whether one of them is whole."""

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.schema.case import AXES
from harness.schema.record import (
    CASE,
    METRICS,
    OK,
    Asked,
    Diagnosis,
    Drift,
    Finding,
    Floor,
    Memory,
    Observation,
    Outcome,
    Step,
    Timing,
    Weight,
)
from harness.schema.run_dir import HELD, RunDir

COLUMNS = {
    "cases": ["launch", *AXES, *(field.name for field in fields(Outcome))],
    "samples": ["case_id", "launch", "rank", "visit", "iteration", "warm_up", "phase", "clock", "seconds"],
    "memory": ["launch", *(field.name for field in fields(Memory))],
    "discrepancies": ["case_id", "launch", "rank", "against", "parameter", *METRICS],
    "findings": [field.name for field in fields(Finding)],
    "drifts": [field.name for field in fields(Drift)],
    "diagnoses": [field.name for field in fields(Diagnosis)],
    "weights": [field.name for field in fields(Weight)],
    "budget": [field.name for field in fields(Step)],
    "floors": [field.name for field in fields(Floor)],
    "probes": [field.name for field in fields(Asked)],
    "observations": ["probe", "subject", "rank", *(field.name for field in fields(Observation))],
    "collectives": ["probe", "subject", "rank", *(field.name for field in fields(Timing))],
}
"""What every file of a table has at least, by table."""


def is_whole(file: Path, name: str) -> bool:
    """Whether it can be read (of samples, their end), has the columns of its table, and is of the case, or probe, `name`."""
    table = file.parent.name
    try:
        with pq.ParquetFile(file) as opened:
            if not set(COLUMNS[table]) <= set(opened.schema_arrow.names):
                return False
            return table == "samples" or _is_of(opened.read(), table, name)
    except (OSError, pa.ArrowException):
        return False


def whole_parts(run_dir: RunDir, probe: str) -> list[str]:
    """Parts of a probe that is not finished of which every table can be read."""
    files = {part: [run_dir.case_file(table, part) for table in HELD["probes"]] for part in run_dir.parts(probe)}
    return [part for part, own in files.items() if all(is_whole(file, probe) for file in own)]


def kept_answers(run_dir: RunDir, probe: str) -> int:
    """Questions of a probe that is not finished whose answers are kept: the run goes on after them."""
    parts = whole_parts(run_dir, probe)
    read = [pq.read_table(run_dir.case_file("probes", part), columns=["subject", "status"]).to_pylist() for part in parts]
    return len({row["subject"] for rows in read for row in rows if row["status"] == OK})


def _is_of(rows: pa.Table, table: str, name: str) -> bool:
    """Where a run went on, a later case may have been held against this one: its rows stand here, too.

    A file that says that something is finished says of what; another may be empty.
    """
    owners = rows.column("case_id" if "case_id" in rows.column_names else "probe").to_pylist()
    against = rows.column("against").to_pylist() if "against" in rows.column_names else [""] * len(owners)
    mine = [name == owner or f"{CASE}{name}" == other for owner, other in zip(owners, against, strict=True)]
    return all(mine) and bool(mine or table not in HELD)
