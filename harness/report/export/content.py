"""What a run has to show elsewhere: for each case and launch its settings, its seconds by iteration, and a few figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

from harness.report.discrepancy import distances
from harness.report.frame import Run
from harness.report.labels import parameter_columns
from harness.report.statistics import Floats
from harness.schema.case import AXES
from harness.schema.record import OK

_PEAK = "peak_memory_bytes"
"""On a CPU it also holds what earlier cases have left."""
_MEMORY = (_PEAK, "above_baseline_bytes", "gradient_bytes")
_KEYS = ("world_size", "backend", "device")


@dataclass(frozen=True)
class Content:
    """One case, as one launch measured it."""

    case_id: str
    launch: int
    settings: dict[str, Any]
    """Axes, parameters of their options, and where it ran; texts and numbers."""
    seconds: dict[str, list[tuple[int, float]]]
    """`<clock>/<phase>` to (measured iteration, seconds of the slowest rank); skew and the like among them."""
    figures: dict[str, float]
    """Name, with its unit, to a number. All are finite but `relative_l2/reference`, which is infinite if a rank has NaN."""


def contents(run: Run) -> Iterator[Content]:
    """Every measured case, launch by launch. The samples of one case are read at a time."""
    measured, far = run.launched[run.launched.status == OK], distances(run).to_dict()
    for case_id, rows in measured.groupby("case_id", sort=False, observed=True):
        times = run.times(str(case_id))
        for row, own in zip(rows.sort_values("launch").to_dict("records"), times.blocks.launches, strict=True):
            seconds = {"/".join(key): _numbered(values[own]) for key, values in times.slowest.items()}
            distance = far.get((str(case_id), row["launch"]))
            yield Content(str(case_id), int(row["launch"]), _settings(run, row), seconds, _figures(row, seconds, distance))


def _numbered(values: Floats) -> list[tuple[int, float]]:
    return [(place, value) for place, value in enumerate(values.tolist()) if value == value]


def _settings(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in (*AXES, *_KEYS, *parameter_columns(run.cases)) if key in row and not _absent(row[key])}
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in kept.items()}


def _figures(row: dict[str, Any], seconds: dict[str, list[tuple[int, float]]], far: float | None) -> dict[str, float]:
    medians = {f"median_s/{name}": median(value for _, value in series) for name, series in seconds.items() if series}
    figures = {**medians, **{key: float(row[key]) for key in _MEMORY if key != _PEAK or row["device"] != "cpu"}}
    finite = {name: value for name, value in figures.items() if isfinite(value)}
    return finite if far is None else finite | {"relative_l2/reference": float(far)}


def _absent(value: object) -> bool:
    return value is None or value != value
