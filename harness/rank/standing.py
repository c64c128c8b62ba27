"""What of a launch is finished already, when a run goes on: told by rank 0, which alone reads the run directory."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.probes.control import Control
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expand_cases, expected_files
from harness.schema.reading import is_there
from harness.schema.record import CASE, FAILED
from harness.schema.run_dir import RunDir
from harness.schema.tables import read_case, read_finished, read_rows


@dataclass(frozen=True)
class Row:
    """What a finished case's row says, as far as it matters for the cases beside it."""

    status: str
    iterations: int
    """Measured ones."""
    gradient_sha256: str


@dataclass(frozen=True)
class Standing:
    """Of one launch; equal on all ranks."""

    cases: dict[str, Row]
    """By case_id."""
    probes: frozenset[str]
    """Names of those that have been asked."""
    pairs: frozenset[tuple[str, str]] = frozenset()
    """(case_id, case_id that it has been held against) of finished cases; on rank 0."""


def read_standing(run_dir: RunDir, config: BenchmarkConfig, launch: int, control: Control, *, retry: bool) -> Standing:
    """All ranks call. A row that cannot be read is none. retry: what failed is to be done again, its rows are dropped."""
    own = _read(run_dir, config, launch, retry=retry) if control.rank == 0 else Standing({}, frozenset())
    told = json.dumps({"cases": {name: asdict(row) for name, row in own.cases.items()}, "probes": sorted(own.probes)})
    heard = json.loads(control.all_gather_text(told)[0])
    return replace(own, cases={name: Row(**row) for name, row in heard["cases"].items()}, probes=frozenset(heard["probes"]))


def _read(run_dir: RunDir, config: BenchmarkConfig, launch: int, *, retry: bool) -> Standing:
    probes_asked = expected_files(config, launch)["probes"]
    read = {
        "cases": {case.case_id: _rows(run_dir, "cases", case.case_id, launch, case) for case in expand_cases(config)},
        "probes": {name: _rows(run_dir, "probes", name, launch) for name in probes_asked},
    }
    for table, found in read.items():
        for name, rows in found.items():
            if rows and table == "probes" and retry and any(row["status"] == FAILED for row in rows):
                run_dir.make_part(name)
                found[name] = []
            elif not rows or (retry and any(row["status"] == FAILED for row in rows)):
                run_dir.forget(table, name, launch)
                found[name] = []
    cases = {name: rows[0] for name, rows in read["cases"].items() if rows}
    probes = frozenset(name for name, rows in read["probes"].items() if rows)
    for name in probes:
        run_dir.drop_parts(name)  # a crash may have come between the whole files and this
    return Standing(
        {name: Row(row["status"], row["iterations"], row["gradient_sha256"]) for name, row in cases.items()},
        probes,
        frozenset(pair for name in cases for pair in _pairs(run_dir, name, launch)),
    )


def _pairs(run_dir: RunDir, name: str, launch: int) -> Iterator[tuple[str, str]]:
    file = run_dir.case_file("discrepancies", name, launch)
    if is_there(file):
        rows = read_rows(file, name, launch).select(["case_id", "against"]).to_pydict()
        pairs = set(zip(rows["case_id"], rows["against"], strict=True))
        yield from ((case, against.removeprefix(CASE)) for case, against in pairs if against.startswith(CASE))


def _rows(run_dir: RunDir, kind: str, name: str, launch: int, case: Case | None = None) -> list[dict[str, Any]]:
    """Rows of a finished case or probe; empty if it is not finished, or if one of its files is missing or damaged."""
    if not is_there(run_dir.case_file(kind, name, launch)):
        return []
    found = read_case(run_dir, case, launch) if case else read_finished(run_dir, kind, name, launch)
    rows: list[dict[str, Any]] = [] if found.damaged else found.rows[kind].to_pylist()
    return rows
