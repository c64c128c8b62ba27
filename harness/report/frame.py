"""A run as pandas DataFrames. Whatever of it is finished loads; what is missing is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from harness.report.case_times import CaseTimes, reduced
from harness.report.distance import furthest
from harness.report.nccl_log import NcclLog, load_nccl_log
from harness.schema.case import AXES, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.progress import Entry, Progress, damaged_files, read_entries
from harness.schema.reading import NotWholeError, is_there
from harness.schema.record import CASE, FAILED, OK
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import DIAGNOSED, RunDir
from harness.schema.tables import COLUMNS, read_rows, read_samples


@dataclass(frozen=True)
class Run:
    """A run directory, read. Every frame has a column case_id; see docs/run_directory.md for the others."""

    path: Path
    config: BenchmarkConfig
    cases: pd.DataFrame
    """One row a finished case, in the order of the configuration, from its first launch; `failed` where any launch of it
    failed. The axes are categories."""
    launched: pd.DataFrame
    """One row a finished case and launch."""
    discrepancies: pd.DataFrame
    """Of the first launch, as `drifts`; `every` has those of all launches."""
    norms: pd.DataFrame
    """One row a case and group of parameters."""
    findings: pd.DataFrame
    """Of all launches, one of a kind a case: the first launch's that has it."""
    drifts: pd.DataFrame
    diagnoses: pd.DataFrame
    """Where the run was asked for them: one row a case, and of the next three one a weight, a step and a parameter."""
    weights: pd.DataFrame
    budget: pd.DataFrame
    floors: pd.DataFrame
    devices: pd.DataFrame
    """One row a case and rank of a run on GPUs."""
    probes: pd.DataFrame
    """One row a question of a finished probe."""
    observations: pd.DataFrame
    """What probes saw: one number a row."""
    collectives: pd.DataFrame
    """Timed calls of a collective sweep."""
    environment: dict[str, Any]
    missing: tuple[str, ...]
    """case_ids, and names of probes, that the configuration asks for and the run never finished."""
    failures: tuple[dict[str, Any], ...] = ()
    """Worlds that ended before all was done: see failures.json."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Files in the run directory that are missing, not whole, or not what their names say, and why."""

    @cached_property
    def nccl(self) -> NcclLog | None:
        """NCCL's own log, where nccl_debug asks for it. Read at the first use: the logs may be large."""
        return load_nccl_log(RunDir(self.path), self.config, self.environment)

    @property
    def ends(self) -> tuple[dict[str, Any], ...]:
        """Former name of `failures`; until 0.3."""
        return self.failures

    @property
    def failed(self) -> bool:
        """True if a case or a question of a probe failed or is missing, or a file is not whole."""
        lacking = bool(self.missing or self.damaged)
        return lacking or any((rows.status == FAILED).any() for rows in (self.cases, self.probes))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All samples at once; large runs are better read by samples_of."""
        return _concatenate([self.samples_of(case_id) for case_id in self.cases.case_id], "samples")

    def samples_of(self, case_id: str) -> pd.DataFrame:
        """The samples of one case, of all launches; see docs/run_directory.md. Empty when it was not measured."""
        return self.raw_samples(case_id).to_pandas()

    def raw_samples(self, case_id: str) -> pa.Table:
        """As samples_of, for arrays."""
        finished = self.launched.launch[(self.launched.case_id == case_id) & (self.launched.status == OK)]
        files = [RunDir(self.path).case_file("samples", case_id, launch) for launch in finished]
        tables = [_unchanged(file, partial(read_samples, file)) for file in files]
        return pa.concat_tables(tables) if tables else pa.table({name: [] for name in COLUMNS["samples"]})

    def times(self, case_id: str) -> CaseTimes:
        """Return the times of a case, of all launches. Its samples are read at the first call; only the result is kept."""
        if case_id not in self._times:
            self._times[case_id] = reduced(self.raw_samples(case_id))
        return self._times[case_id]

    @cached_property
    def _times(self) -> dict[str, CaseTimes]:
        return {}

    @cached_property
    def furthest(self) -> pd.DataFrame:
        """One row a case, launch and reference: the rank whose whole gradient is furthest away; see `distance.furthest`."""
        first_alone = set(self.launched.launch) <= {0}  # then `discrepancies` has the rows of all launches
        return furthest(self.discrepancies if first_alone else self.every("discrepancies"))

    def every(self, table: str) -> pd.DataFrame:
        """A small table as all launches wrote it."""
        rows = zip(self.launched.case_id, self.launched.launch, strict=True)
        files = [(RunDir(self.path).case_file(table, name, launch), name, launch) for name, launch in rows]
        found = [_again(*file) for file in files if is_there(file[0])]
        return _of_known(_concatenate([rows.to_pandas() for rows in found], table), set(self.launched.case_id))


def load_run(path: Path | str) -> Run:
    """Read a run directory. Raises RefusedError when `path` is none."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    read = _read_all(run_dir, config)
    tables = {table: _concatenate(read.frames[table], table) for names in _SMALL.values() for table in names}
    launched = _with_categories(tables.pop("cases"), config)
    known = set(launched.case_id)
    tables = {table: _of_known(rows, known) for table, rows in tables.items()}
    findings = tables.pop("findings").drop_duplicates(["case_id", "kind"], ignore_index=True)
    progress = Progress(tuple(read.entries))
    return Run(
        path=run_dir.path,
        config=config,
        cases=_one_a_case(launched),
        launched=launched,
        findings=findings,
        environment=run_dir.environment(),
        missing=tuple(entry.label for entry in progress.unfinished),
        failures=tuple(run_dir.failures()),
        damaged=damaged_files(run_dir, progress),
        **{table: _of_first_launch(rows) for table, rows in tables.items()},
    )


_SMALL = {
    "cases": ("cases", "devices", "discrepancies", "norms", "findings", "drifts", *DIAGNOSED),
    "probes": ("probes", "observations", "collectives"),
}
"""Those of them that are read at once."""


@dataclass
class _Read:
    """Rows of finished cases and probes, launch after launch, in the order of the configuration."""

    frames: dict[str, list[pd.DataFrame]]
    entries: list[Entry] = field(default_factory=list)

    def add(self, rows: Mapping[str, pa.Table]) -> None:
        """Keep the rows of one case or probe."""
        for table in self.frames.keys() & rows.keys():
            self.frames[table].append(rows[table].to_pandas())


def _read_all(run_dir: RunDir, config: BenchmarkConfig) -> _Read:
    """Read all finished cases and probes; a damaged file excludes only its own case or probe."""
    read = _Read({table: [] for names in _SMALL.values() for table in names})
    for loaded in read_entries(run_dir, config):
        read.entries.append(loaded.entry)
        if loaded.case is not None and loaded.rows:
            _add_case(read, loaded.rows, loaded.case)
        else:
            for rows in (loaded.rows, *loaded.parts):
                read.add(rows)
    return read


def _add_case(read: _Read, rows: Mapping[str, pa.Table], case: Case) -> None:
    """Add the rows of one case, with the options and parameters of the configuration; the case_id has a digest of them."""
    read.add({table: own for table, own in rows.items() if table != "cases"})
    own = rows["cases"].to_pandas()
    read.frames["cases"].append(own.assign(**{name: [value] for name, value in case.parameters}))


def _again(file: Path, name: str, launch: int) -> pa.Table:
    return _unchanged(file, partial(read_rows, file, name, launch))


def _unchanged(file: Path, read: Callable[[], pa.Table]) -> pa.Table:
    """Rows of a file that was checked before. Raises RefusedError if it has changed since."""
    try:
        return read()
    except NotWholeError as error:
        raise RefusedError(f"{file} has changed while the run was read: {error}") from error


def _of_known(rows: pd.DataFrame, known: set[str]) -> pd.DataFrame:
    """Rows of known cases, compared with references or with known cases."""
    kept = rows.case_id.isin(known) if "case_id" in rows else pd.Series(True, rows.index)
    if "against" in rows:
        against = rows.against.astype(str)
        kept &= ~against.str.startswith(CASE) | against.str.removeprefix(CASE).isin(known)
    return rows if kept.all() else rows[kept].reset_index(drop=True)


def _one_a_case(launched: pd.DataFrame) -> pd.DataFrame:
    """A case that failed in any launch has that launch's status and reason."""
    rows = launched.assign(ok=launched.status != FAILED).sort_values("ok", kind="stable").drop_duplicates("case_id")
    status, reason = (rows.set_index("case_id")[column] for column in ("status", "reason"))
    cases = launched.drop_duplicates("case_id", ignore_index=True)
    return cases.assign(status=cases.case_id.map(status), reason=cases.case_id.map(reason))


def _of_first_launch(rows: pd.DataFrame) -> pd.DataFrame:
    """Probes are asked in the first launch only, and have no column for it."""
    return rows[rows.launch == 0].reset_index(drop=True) if "launch" in rows else rows


def _concatenate(frames: list[pd.DataFrame], table: str) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS[table], dtype=object)


def _with_categories(cases: pd.DataFrame, config: BenchmarkConfig) -> pd.DataFrame:
    return cases.assign(**{axis: pd.Categorical(cases[axis], categories=list(getattr(config, axis))) for axis in AXES})
