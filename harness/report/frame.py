"""A run as pandas DataFrames. Whatever of it is finished loads; what is missing is said."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.schema.case import AXES
from harness.schema.config import BenchmarkConfig
from harness.schema.file_names import file_name
from harness.schema.matrix import expected_files
from harness.schema.record import FAILED, OK
from harness.schema.run_dir import DIAGNOSED, HELD, RunDir
from harness.schema.tables import COLUMNS, is_whole, whole_parts


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
    findings: pd.DataFrame
    """Of all launches, one of a kind a case: the first launch's that has it."""
    drifts: pd.DataFrame
    diagnoses: pd.DataFrame
    """Where the run was asked for them: one row a case, and of the next three one a weight, a step and a parameter."""
    weights: pd.DataFrame
    budget: pd.DataFrame
    floors: pd.DataFrame
    probes: pd.DataFrame
    """One row a question of a finished probe."""
    observations: pd.DataFrame
    """What probes saw: one number a row."""
    collectives: pd.DataFrame
    """Timed calls of a collective sweep."""
    environment: dict[str, Any]
    missing: tuple[str, ...]
    """case_ids, and names of probes, that the configuration asks for and the run never finished."""
    ends: tuple[dict[str, Any], ...] = ()
    """Worlds that died: see ends.json."""
    damaged: tuple[str, ...] = ()
    """Files in the run directory, of cases and probes, that are not whole, or not what their names say."""

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
        tables = [pq.read_table(file) for file in files]
        return pa.concat_tables(tables) if tables else pa.table({name: [] for name in COLUMNS["samples"]})

    def every(self, table: str) -> pd.DataFrame:
        """A small table as all launches wrote it."""
        rows = zip(self.launched.case_id, self.launched.launch, strict=True)
        return _concatenate(_frames(RunDir(self.path), list(rows), table), table)


def load_run(path: Path | str) -> Run:
    """Read a run directory. Raises RefusedError when `path` is none."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    sound, damaged = _sorted_out(run_dir, config)
    tables = {
        table: _concatenate(_frames(run_dir, sound[kind], table), table) for kind, held in _SMALL.items() for table in held
    }
    launched = _with_categories(tables.pop("cases"), config)
    findings = tables.pop("findings").drop_duplicates(["case_id", "kind"], ignore_index=True)
    return Run(
        path=run_dir.path,
        config=config,
        cases=_one_a_case(launched),
        launched=launched,
        findings=findings,
        environment=run_dir.environment(),
        missing=(*run_dir.missing(), *dict.fromkeys(file.stem for file in damaged)),
        ends=tuple(run_dir.ends()),
        damaged=tuple(str(file.relative_to(run_dir.path)) for file in damaged),
        **{table: _of_first_launch(rows) for table, rows in tables.items()},
    )


_SMALL = {
    "cases": ("cases", "discrepancies", "findings", "drifts", *DIAGNOSED),
    "probes": ("probes", "observations", "collectives"),
}
"""Those of them that are read at once."""


Sound = dict[str, list[tuple[str, int]]]
"""Table to the (name, launch) of what can be read in it."""


def _sorted_out(run_dir: RunDir, config: BenchmarkConfig) -> tuple[Sound, list[Path]]:
    """Finished cases and probes, launch after launch, in the order of the configuration; and files that are not whole."""
    sound, damaged = Sound(cases=[], probes=[]), list[Path]()
    for launch in range(config.launches):
        for kind, names in expected_files(config, launch).items():
            finished = run_dir.finished(kind, launch)
            for name in [name for name in names if file_name(name) in finished]:
                files = [run_dir.case_file(table, name, launch) for table in HELD[kind]]
                broken = [file for file in files if file.is_file() and not is_whole(file, name)]
                damaged += broken
                sound[kind] += [] if broken else [(name, launch)]
            if kind == "probes":
                unfinished = [name for name in names if file_name(name) not in finished]
                sound[kind] += [(part, launch) for name in unfinished for part in whole_parts(run_dir, name)]
    return sound, damaged


def _frames(run_dir: RunDir, sound: list[tuple[str, int]], table: str) -> list[pd.DataFrame]:
    """What the finished cases or probes left in a table."""
    files = [run_dir.case_file(table, name, launch) for name, launch in sound]
    return [pd.read_parquet(file) for file in files if file.is_file()]


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
