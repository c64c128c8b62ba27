"""A run as pandas DataFrames. Whatever of it is finished loads; what is missing is said."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from harness.report.case_times import CaseTimes, reduced
from harness.report.distance import furthest, furthest_launches
from harness.report.nccl_log import NcclLog, load_nccl_log
from harness.schema.arrow import coded, parameter_values, parameters_of, schema_of
from harness.schema.case import AXES, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.declare import CASES
from harness.schema.matrix import expand_cases
from harness.schema.progress import Entry, Progress, damaged_files, read_entries
from harness.schema.reading import NotWholeError, is_there
from harness.schema.record import CASE, FAILED, OK, TABLES
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.tables import read_rows, read_samples


class Frames:
    """Frames of the declared tables, as attributes.

    Those that the report reads are typed here. Every other declared table has its attribute as well; `frame` takes any name.
    """

    discrepancies: pd.DataFrame
    norms: pd.DataFrame
    findings: pd.DataFrame
    """Of all launches, one of a kind a case: the first launch's that has it."""
    drifts: pd.DataFrame
    diagnoses: pd.DataFrame
    weights: pd.DataFrame
    budget: pd.DataFrame
    floors: pd.DataFrame
    memory: pd.DataFrame
    devices: pd.DataFrame
    probes: pd.DataFrame
    """One row a question; those of a probe that is not finished lie in its parts."""
    observations: pd.DataFrame
    collectives: pd.DataFrame

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> pd.DataFrame:
            return self.frame(name)

    def frame(self, table: str) -> pd.DataFrame:
        """Frame of a table. Raise AttributeError for a name that is none."""
        frames = vars(self).get("frames", {})
        found: pd.DataFrame | None = getattr(self, table) if table in (CASES, "samples") else frames.get(table)
        if found is None:
            raise AttributeError(f"Run has no attribute, and no table, {table!r}; tables: {', '.join(TABLES)}")
        return found


@dataclass(frozen=True)
class Run(Frames):
    """A run directory, read. Each table of docs/run_directory.md is an attribute: a frame of its rows of the first launch.

    `every` has those of all launches: that frame equals `pandas.read_parquet(run / table)` but for the order of rows.
    """

    path: Path
    config: BenchmarkConfig
    cases: pd.DataFrame
    """One row a finished case, in the order of the configuration, from its first launch; `failed` where any launch of it
    failed. The axes are categories."""
    launched: pd.DataFrame
    """One row a finished case and launch."""
    frames: dict[str, pd.DataFrame]
    """Table to its frame, for every table but `cases` and `samples`."""
    environment: dict[str, Any]
    missing: tuple[str, ...]
    """case_ids, and names of probes, that the configuration asks for and the run never finished."""
    failures: tuple[dict[str, Any], ...] = ()
    """Worlds that ended before all was done: see failures.json."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Files in the run directory that are missing, not whole, or not what their names say, and why."""

    def with_frames(self, **frames: pd.DataFrame) -> "Run":
        """Return the run with other frames of these tables; `every` reads the files of all launches as before."""
        return replace(self, frames=self.frames | frames)

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
        """All samples at once, of all launches; large runs are better read by samples_of."""
        return _as_frame(pa.concat_tables([schema_of("samples").empty_table(), *map(self.raw_samples, self.cases.case_id)]))

    def samples_of(self, case_id: str) -> pd.DataFrame:
        """The samples of one case, of all launches; see docs/run_directory.md. Empty when it was not measured."""
        return _as_frame(self.raw_samples(case_id))

    def raw_samples(self, case_id: str) -> pa.Table:
        """As samples_of, for arrays."""
        finished = self.launched.launch[(self.launched.case_id == case_id) & (self.launched.status == OK)]
        files = [RunDir(self.path).case_file("samples", case_id, launch) for launch in finished]
        return pa.concat_tables(
            [schema_of("samples").empty_table(), *(_unchanged(file, partial(read_samples, file)) for file in files)]
        )

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
        return furthest(self.whole_discrepancies)

    @cached_property
    def whole_discrepancies(self) -> pd.DataFrame:
        """Rows of `discrepancies` of whole gradients, of all launches."""
        rows = self._all("discrepancies")
        return rows[rows.parameter == ""].reset_index(drop=True)

    @cached_property
    def furthest_discrepancies(self) -> pd.DataFrame:
        """`discrepancies` of each case, of the launch whose gradient is furthest from `reference`."""
        return self._at_furthest("discrepancies")

    @cached_property
    def furthest_norms(self) -> pd.DataFrame:
        """`norms` of each case, likewise."""
        return self._at_furthest("norms")

    def _at_furthest(self, table: str) -> pd.DataFrame:
        rows = self._all(table)
        return rows[rows.launch == rows.case_id.astype(str).map(furthest_launches(self.furthest))].reset_index(drop=True)

    def _all(self, table: str) -> pd.DataFrame:
        """Rows of all launches; the frame where only the first launch has finished cases."""
        return self.frame(table) if set(self.launched.launch) <= {0} else self.every(table)

    def every(self, table: str) -> pd.DataFrame:
        """A table as all launches wrote it."""
        if table == CASES:
            return self.launched
        if TABLES[table].large:
            return self.samples
        if not TABLES[table].launched:
            return self.frame(table)
        rows = zip(self.launched.case_id, self.launched.launch, strict=True)
        files = [(RunDir(self.path).case_file(table, name, launch), name, launch) for name, launch in rows]
        found = [_again(*file) for file in files if is_there(file[0])]
        return _of_known(_frame(table, found), set(self.launched.case_id))


def load_run(path: Path | str) -> Run:
    """Read a run directory. Raises RefusedError when `path` is none."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    cases = expand_cases(config)
    read = _read_all(run_dir, config)
    launched = _as_frame(_with_parameters(_concatenated(CASES, read.rows[CASES]), cases, config))
    known = set(launched.case_id)
    frames = {table: _of_known(_frame(table, rows), known) for table, rows in read.rows.items() if table != CASES}
    progress = Progress(tuple(read.entries))
    return Run(
        path=run_dir.path,
        config=config,
        cases=_one_a_case(launched),
        launched=launched,
        frames={table: _of_first_launch(table, rows) for table, rows in frames.items()},
        environment=run_dir.environment(),
        missing=tuple(entry.label for entry in progress.unfinished),
        failures=tuple(run_dir.failures()),
        damaged=damaged_files(run_dir, progress),
    )


@dataclass
class _Read:
    """Rows of finished cases and probes, launch after launch, in the order of the configuration."""

    rows: dict[str, list[pa.Table]] = field(default_factory=lambda: {name: [] for name in TABLES if not TABLES[name].large})
    entries: list[Entry] = field(default_factory=list)

    def add(self, rows: Mapping[str, pa.Table]) -> None:
        """Keep the rows of one case or probe."""
        for table in self.rows.keys() & rows.keys():
            self.rows[table].append(rows[table])


def _read_all(run_dir: RunDir, config: BenchmarkConfig) -> _Read:
    """Read all finished cases and probes; a damaged file excludes only its own case or probe."""
    read = _Read()
    for loaded in read_entries(run_dir, config):
        read.entries.append(loaded.entry)
        for rows in (loaded.rows, *loaded.parts):
            read.add(rows)
    return read


def _with_parameters(rows: pa.Table, cases: Sequence[Case], config: BenchmarkConfig) -> pa.Table:
    """Rows of `cases` with the axes and parameters of the configuration; the case_id has a digest of them."""
    known, parameters = {case.case_id: case for case in cases}, parameters_of(cases)
    own = [known[name] for name in rows["case_id"].to_pylist()]
    values = [parameter_values(case, parameters) for case in own]
    schema = schema_of(CASES, parameters)
    made = {axis: _option_column(axis, own, config) for axis in AXES}
    made |= {name: pa.array([one[name] for one in values], schema.field(name).type) for name in parameters}
    return pa.table([made[name] if name in made else rows[name] for name in schema.names], schema=schema)


def _option_column(axis: str, cases: Sequence[Case], config: BenchmarkConfig) -> pa.DictionaryArray:
    options = list(getattr(config, axis))
    return coded([options.index(case.options[axis]) for case in cases], options)


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


def _of_first_launch(table: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first launch; findings of all, each kind once a case."""
    if table == "findings":
        return rows.drop_duplicates(["case_id", "kind"], ignore_index=True)
    return rows[rows.launch == 0].reset_index(drop=True) if TABLES[table].launched else rows


def _concatenated(table: str, rows: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([schema_of(table).empty_table(), *rows])


def _frame(table: str, rows: Sequence[pa.Table]) -> pd.DataFrame:
    return _as_frame(_concatenated(table, rows))


def _as_frame(rows: pa.Table) -> pd.DataFrame:
    """Rows as pandas reads them from the files."""
    return rows.to_pandas()
