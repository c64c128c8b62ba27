"""A run as pandas DataFrames. Whatever of it is finished loads; what is missing is said."""

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.schema.case import AXES
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expected_files
from harness.schema.record import METRICS, Asked, Drift, Finding, Observation, Outcome, Timing
from harness.schema.run_dir import RunDir


@dataclass(frozen=True)
class Run:
    """A run directory, read. Every frame has a column case_id; see docs/run_directory.md for the others."""

    path: Path
    config: BenchmarkConfig
    cases: pd.DataFrame
    """One row a finished case, in the order of the configuration; the axes are categories."""
    discrepancies: pd.DataFrame
    findings: pd.DataFrame
    drifts: pd.DataFrame
    probes: pd.DataFrame
    """One row a question of a finished probe."""
    observations: pd.DataFrame
    """What probes saw: one number a row."""
    collectives: pd.DataFrame
    """Timed calls of a collective sweep."""
    environment: dict[str, Any]
    missing: tuple[str, ...]
    """case_ids, and names of probes, that the configuration asks for and the run never finished."""

    @cached_property
    def samples(self) -> pd.DataFrame:
        """All samples at once; large runs are better read by samples_of."""
        return _concatenate([self.samples_of(case_id) for case_id in self.cases.case_id], "samples")

    def samples_of(self, case_id: str) -> pd.DataFrame:
        """The samples of one case: rank, iteration, warm_up, phase, clock, seconds. Empty when it was not measured."""
        return _read(RunDir(self.path).case_file("samples", case_id))


def load_run(path: Path | str) -> Run:
    """Read a run directory. Raises RefusedError when `path` is none."""
    run_dir = RunDir.open(path)
    config = run_dir.config()
    missing = run_dir.missing()
    expected = expected_files(config)
    tables = {
        table: [_read(run_dir.case_file(table, name)) for name in expected[kind] if name not in missing]
        for kind, held in _SMALL.items()
        for table in held
    }
    return Run(
        path=run_dir.path,
        config=config,
        cases=_with_categories(_concatenate(tables["cases"], "cases"), config),
        discrepancies=_concatenate(tables["discrepancies"], "discrepancies"),
        findings=_concatenate(tables["findings"], "findings"),
        drifts=_concatenate(tables["drifts"], "drifts"),
        probes=_concatenate(tables["probes"], "probes"),
        observations=_concatenate(tables["observations"], "observations"),
        collectives=_concatenate(tables["collectives"], "collectives"),
        environment=run_dir.environment(),
        missing=tuple(missing),
    )


_SMALL = {"cases": ("cases", "discrepancies", "findings", "drifts"), "probes": ("probes", "observations", "collectives")}
"""What is finished with a row in `cases`, and what with one in `probes`."""
_COLUMNS = {
    "cases": ["launch", *AXES, *(field.name for field in fields(Outcome))],
    "samples": ["case_id", "launch", "rank", "visit", "iteration", "warm_up", "phase", "clock", "seconds"],
    "discrepancies": ["case_id", "launch", "rank", "against", "parameter", *METRICS],
    "findings": [field.name for field in fields(Finding)],
    "drifts": [field.name for field in fields(Drift)],
    "probes": [field.name for field in fields(Asked)],
    "observations": ["probe", "subject", "rank", *(field.name for field in fields(Observation))],
    "collectives": ["probe", "subject", "rank", *(field.name for field in fields(Timing))],
}
"""What a table has when no case was finished."""


def _read(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path) if path.is_file() else pd.DataFrame()


def _concatenate(frames: list[pd.DataFrame], table: str) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=_COLUMNS[table], dtype=object)


def _with_categories(cases: pd.DataFrame, config: BenchmarkConfig) -> pd.DataFrame:
    return cases.assign(**{axis: pd.Categorical(cases[axis], categories=list(getattr(config, axis))) for axis in AXES})
