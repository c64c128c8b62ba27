"""Progress of a launch, when a run goes on. Rank 0 alone reads the run directory, and sends what it finds to the others."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.probes.control import Control
from harness.schema.config import BenchmarkConfig
from harness.schema.progress import DAMAGED, MISSING, Entry, Loaded, read_entries
from harness.schema.record import CASE, FAILED
from harness.schema.run_dir import RunDir

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Row:
    """Columns of a finished case's row that matter for the cases beside it."""

    status: str
    iterations: int
    """Measured ones."""
    gradient_sha256: str


@dataclass(frozen=True)
class LaunchProgress:
    """Finished cases and probes of one launch; equal on all ranks. One that failed is finished, too, unless it is retried."""

    cases: dict[str, Row]
    """case_id to its row."""
    probes: frozenset[str]
    """Names of those that have been asked."""
    pairs: frozenset[tuple[str, str]] = frozenset()
    """(case_id, case_id that it has been compared with) of finished cases; on rank 0."""


def take_up(run_dir: RunDir, config: BenchmarkConfig, launch: int, control: Control, *, retry: bool) -> LaunchProgress:
    """Read what is finished, and remove the files of everything that is to be measured again. All ranks call.

    retry: failed cases and probes are measured again.
    """
    own = _take_up(run_dir, config, launch, retry=retry) if control.rank == 0 else LaunchProgress({}, frozenset())
    sent = json.dumps({"cases": {name: asdict(row) for name, row in own.cases.items()}, "probes": sorted(own.probes)})
    received = json.loads(control.all_gather_text(sent)[0])
    return replace(
        own, cases={name: Row(**row) for name, row in received["cases"].items()}, probes=frozenset(received["probes"])
    )


def _take_up(run_dir: RunDir, config: BenchmarkConfig, launch: int, *, retry: bool) -> LaunchProgress:
    cases, probes, pairs = dict[str, Row](), set[str](), set[tuple[str, str]]()
    again = (MISSING, DAMAGED, FAILED) if retry else (MISSING, DAMAGED)
    for loaded in read_entries(run_dir, config, launch, parts=False):
        entry = loaded.entry
        if entry.state in again:
            _clear(run_dir, entry)
        elif entry.table == "probes":
            probes.add(entry.name)
            run_dir.drop_parts(entry.name)  # a crash may have come between the whole files and this
        else:
            cases[entry.name] = _row(loaded)
            pairs |= _pairs(loaded.rows)
    return LaunchProgress(cases, frozenset(probes), frozenset(pairs))


def _clear(run_dir: RunDir, entry: Entry) -> None:
    """Make room for a case or probe that is measured again; answers of a probe that failed are kept."""
    if entry.table == "probes" and entry.state == FAILED:
        run_dir.make_part(entry.name)
    else:
        run_dir.forget(entry.table, entry.name, entry.launch)


def _row(loaded: Loaded) -> Row:
    row: dict[str, Any] = loaded.rows["cases"].to_pylist()[0]
    return Row(row["status"], row["iterations"], row["gradient_sha256"])


def _pairs(rows: "Mapping[str, pa.Table]") -> set[tuple[str, str]]:
    """Pairs of cases whose gradients have been compared."""
    if "discrepancies" not in rows:
        return set()
    columns = rows["discrepancies"].select(["case_id", "against"]).to_pydict()
    compared = set(zip(columns["case_id"], columns["against"], strict=True))
    return {(case, against.removeprefix(CASE)) for case, against in compared if against.startswith(CASE)}
