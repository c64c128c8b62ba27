"""Progress of a run: which of its expected cases and probes are finished, failed, missing or damaged, launch by launch.

Ranks, launcher and report all ask here. pyarrow is imported with the first row that is read: a launcher that begins a run
needs none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.environment import Fitted
from harness.schema.file_names import file_name
from harness.schema.matrix import expand_cases, expected_files
from harness.schema.reading import NotWholeError
from harness.schema.record import FAILED, OK, SKIPPED
from harness.schema.run_dir import HELD, RunDir, of_launch

if TYPE_CHECKING:
    import pyarrow as pa

FINISHED, MISSING, DAMAGED = "finished", "missing", "damaged"
"""States beside FAILED."""
_NAMED = 3
"""Number of problems of a file that are named."""


@dataclass(frozen=True, slots=True)
class Entry:
    """State of one expected case, or probe, in one launch."""

    table: str
    """`cases` or `probes`."""
    name: str
    """case_id, or name of the probe."""
    launch: int
    state: str
    """FINISHED: every file is whole, and its status is OK or SKIPPED. FAILED: likewise, and a row has that status.
    MISSING: it has no row. DAMAGED: it has one, and one of its files is missing or not whole."""
    status: str = ""
    """OK, SKIPPED or FAILED, empty without whole rows. A probe is FAILED if one of its questions is, SKIPPED if all are."""
    damaged: tuple[tuple[Path, str], ...] = ()
    """Files that are missing or not whole, and why."""
    answers: int = 0
    """Questions of a missing probe whose answers are kept in parts: the run goes on after them."""

    @property
    def label(self) -> str:
        """Name as in `Run.missing`, with the launch if it is not the first."""
        return of_launch(self.name, self.launch)


@dataclass(frozen=True)
class Loaded:
    """An entry with its rows."""

    entry: Entry
    rows: "Mapping[str, pa.Table]"
    """Table to its rows; empty unless every file is whole. Rows of samples are checked and not kept."""
    parts: "Sequence[Mapping[str, pa.Table]]" = ()
    """Rows of each whole part of a missing probe, likewise."""
    case: Case | None = None


@dataclass(frozen=True)
class Progress:
    """Entries of a run, or of one launch, in the order of the launches and of the configuration."""

    entries: tuple[Entry, ...]

    def of(self, *states: str) -> list[Entry]:
        """Entries in one of these states."""
        return [entry for entry in self.entries if entry.state in states]

    def cases(self, launch: int) -> list[Entry]:
        """Entries of the cases of one launch."""
        return [entry for entry in self.entries if entry.table == "cases" and entry.launch == launch]

    @property
    def unfinished(self) -> list[Entry]:
        """Entries that a run that goes on measures in any case: first those that are missing, then those that are damaged."""
        return [*self.of(MISSING), *self.of(DAMAGED)]


def read_progress(run_dir: RunDir, config: BenchmarkConfig, launch: int | None = None) -> Progress:
    """Read the state of every expected case and probe, of one launch or of all."""
    return Progress(tuple(loaded.entry for loaded in read_entries(run_dir, config, launch)))


def read_entries(
    run_dir: RunDir, config: BenchmarkConfig, launch: int | None = None, *, parts: bool = True
) -> Iterator[Loaded]:
    """Read every expected case and probe, of one launch or of all. Each file is opened once.

    parts: read the parts of probes without a row, too.
    """
    listed = {table: run_dir.listed_by_launch(table) for table in HELD}
    cases = expand_cases(config)
    for number in range(config.launches) if launch is None else [launch]:
        there = {table: listed[table].get(number, set()) for table in HELD}
        for case in cases:
            is_listed = file_name(case.case_id) in there["cases"]
            yield _read_case(run_dir, case, number) if is_listed else _missing("cases", case.case_id, number, case)
        for probe in expected_files(config, number)["probes"]:
            if file_name(probe) in there["probes"]:
                yield _read_probe(run_dir, probe, number)
            else:
                yield _read_parts(run_dir, probe) if parts else _missing("probes", probe, number)


def _missing(table: str, name: str, launch: int, case: Case | None = None) -> Loaded:
    return Loaded(Entry(table, name, launch, MISSING), {}, case=case)


def _read_case(run_dir: RunDir, case: Case, launch: int) -> Loaded:
    from harness.schema.tables import read_case

    found = read_case(run_dir, case, launch)
    return _loaded("cases", case.case_id, launch, found.rows, found.damaged, case)


def _read_probe(run_dir: RunDir, probe: str, launch: int) -> Loaded:
    from harness.schema.tables import read_finished

    found = read_finished(run_dir, "probes", probe, launch)
    return _loaded("probes", probe, launch, found.rows, found.damaged)


def _loaded(
    table: str,
    name: str,
    launch: int,
    rows: "Mapping[str, pa.Table]",
    damaged: Mapping[Path, str],
    case: Case | None = None,
) -> Loaded:
    if table not in rows and not damaged:  # it was removed after it was listed, by a run that goes on
        return _missing(table, name, launch, case)
    if damaged:
        return Loaded(Entry(table, name, launch, DAMAGED, damaged=tuple(damaged.items())), {}, case=case)
    statuses = set(rows[table]["status"].to_pylist())
    status = next(status for status in (FAILED, OK, SKIPPED) if status in statuses)
    return Loaded(Entry(table, name, launch, FAILED if status == FAILED else FINISHED, status), rows, case=case)


def _read_parts(run_dir: RunDir, probe: str) -> Loaded:
    """A probe without a row, with the answers that an earlier world has left in parts."""
    parts = read_parts(run_dir, probe)
    kept = {row["subject"] for rows in parts for row in rows["probes"].to_pylist() if row["status"] == OK}
    return Loaded(Entry("probes", probe, 0, MISSING, answers=len(kept)), {}, parts)


def read_parts(run_dir: RunDir, probe: str) -> "list[dict[str, pa.Table]]":
    """Read the whole parts of a probe that is not finished, in the order in which they were written."""
    names = run_dir.parts(probe)
    if not names:
        return []
    from harness.schema.tables import part_files, read_rows

    found = []
    for part in names:
        with suppress(NotWholeError):  # the world may have ended between two files of a part
            found.append({table: read_rows(file, probe) for table, file in part_files(run_dir, part).items()})
    return found


def damaged_files(run_dir: RunDir, progress: Progress) -> dict[str, str]:
    """Map each damaged file, by its path in the run, to its problem: files of the tables, and the JSON files."""
    files = {str(file.relative_to(run_dir.path)): why for entry in progress.entries for file, why in entry.damaged}
    environment = run_dir.read_environment()
    begun = any(entry.status for entry in progress.entries if entry.table == "cases")
    absent = "missing" if begun and not environment.there else ""
    files["environment.json"] = absent or _in_words(environment)
    files[run_dir.failures_file.name] = _in_words(run_dir.read_failures())
    return {name: why for name, why in files.items() if why}


def _in_words(read: Fitted) -> str:
    shown = "; ".join(read.problems[:_NAMED])
    return shown + (f"; and {len(read.problems) - _NAMED} more" if len(read.problems) > _NAMED else "")
