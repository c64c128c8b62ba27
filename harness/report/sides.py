"""One side of a comparison: the launches of one or more runs of a configuration, put together case by case."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.report.case_times import CaseTimes
from harness.report.discrepancy import distances
from harness.report.frame import Run, load_run
from harness.report.labels import columns_but_of, short, spelled
from harness.report.norms import LOSS, NORM, is_known
from harness.report.statistics import Floats
from harness.schema.config import values_affecting
from harness.schema.environment import machine_facts
from harness.schema.record import OK
from harness.schema.refusal import RefusedError

TIME, MEMORY, DISCREPANCY = "time", "memory", "relative_l2"
FIGURES = (LOSS, NORM)
"""Metrics that are numbers of the step itself."""
Key = tuple[tuple[str, str], ...]
"""What makes a case: its axes and parameters, by name, as text."""
_UNLIKE = "the runs took their common cases in unlike orders, which changes times"


@dataclass(frozen=True)
class Side:
    """The runs of one side."""

    runs: tuple[Run, ...]
    apart: str = ""
    """An axis that makes no part of a case here."""

    @cached_property
    def keys(self) -> dict[Key, dict[int, str]]:
        """Every finished case to the runs that have it, and how they call it; in the order of the runs' configurations."""
        found: dict[Key, dict[int, str]] = {}
        for number, run in enumerate(self.runs):
            for case_id, key in zip(run.cases.case_id, _keys(run.cases, self.apart), strict=True):
                if number in found.setdefault(key, {}):
                    raise RefusedError(f"--across {self.apart}: {run.path} has several cases that differ in nothing else")
                found[key][number] = case_id
        return found

    @cached_property
    def measured(self) -> list[Key]:
        """Cases with numbers: those that no launch failed."""
        statuses = [run.cases.set_index("case_id").status for run in self.runs]
        return [key for key, names in self.keys.items() if all(statuses[number][name] == OK for number, name in names.items())]

    def why_not(self, key: Key) -> str:
        """Why a case of this side has no numbers."""
        for number, case_id in self.keys[key].items():
            row = self.runs[number].cases.set_index("case_id").loc[case_id]
            if row.status != OK:
                return f"{row.status}: {row.reason}"
        raise KeyError(key)

    def launches(self, key: Key, *, phases: bool = False) -> dict[str, Floats]:
        """Metric to one number a launch: TIME in seconds, `time.<phase>` where asked for, MEMORY in bytes, DISCREPANCY; and
        FIGURES where they are known."""
        found: dict[str, list[Floats]] = {}
        for number, case_id in self.keys[key].items():
            apart = self._distances[number].get(case_id, np.empty(0))
            for metric, values in (
                *_metrics(self.runs[number], case_id, phases),
                (DISCREPANCY, apart),
                *self._figures(number, case_id),
            ):
                found.setdefault(metric, []).append(values)
        joined = {metric: np.concatenate(values) for metric, values in found.items()}
        return {metric: values for metric, values in joined.items() if len(values)}

    @cached_property
    def _distances(self) -> list[dict[str, Floats]]:
        return [_distances(run) for run in self.runs]

    def _figures(self, number: int, case_id: str) -> Iterator[tuple[str, Floats]]:
        run = self.runs[number]
        launched = run.launched[(run.launched.case_id == case_id) & (run.launched.status == OK)]
        for figure in FIGURES:
            yield figure, launched[figure][is_known(launched, figure)].to_numpy(dtype=np.float64)

    def norms(self, key: Key) -> pd.Series:
        """Norm by group of parameters, of the first run and launch that have the case; empty where it is not known."""
        number, case_id = next(iter(self.keys[key].items()))
        return self._norms[number].get(case_id, pd.Series(dtype=float))

    @cached_property
    def _norms(self) -> list[dict[str, pd.Series]]:
        return [_norms(run) for run in self.runs]

    def options(self, axis: str) -> set[str]:
        """What is selected on an axis."""
        return {option for run in self.runs for option in getattr(run.config, axis)}


def load_side(paths: Sequence[Path], apart: str = "", reader: Callable[[Path], Run] = load_run) -> Side:
    """Load the runs of a side by `reader`. Raises RefusedError for a path that is no run directory."""
    return Side(tuple(reader(path) for path in dict.fromkeys(path.resolve() for path in paths)), apart)


def check_orders(base: Side, new: Side) -> None:
    """What ran before a case changes its time: raises RefusedError unless all runs took their cases in like order."""
    orders = {_order(run): run.path for run in (*base.runs, *new.runs)}
    if len(orders) > 1:
        (first, one), (second, other), *_ = orders.items()
        raise RefusedError(f"{_UNLIKE}: {first} in {one}, {second} in {other}")
    if base.runs[0].config.order == "shuffled":
        return  # by chance, and another one in each launch
    sequences = [(run.path, sequence) for side in (base, new) for run, sequence in _sequences(side)]
    common = set.intersection(*(set(sequence) for _, sequence in sequences))
    seen = {tuple(key for key in sequence if key in common): path for path, sequence in sequences}
    if len(seen) > 1:
        one, other, *_ = seen.values()
        raise RefusedError(f"{_UNLIKE}: {one}, and {other}")


def in_turn(base: Side, new: Side) -> bool:
    """Whether the launches of neither side had all begun before those of the other; so too where it is not known."""
    first, second = sorted(began for began in (_began(base), _began(new)))
    return not first or not second or second[0] < first[-1]


def differences(base: Side, new: Side) -> pd.DataFrame:
    """What of configuration and environment is not the same on both sides: key, base, new."""
    facts = [[_facts(run) for run in side.runs] for side in (base, new)]
    keys = dict.fromkeys(key for side in facts for run in side for key in run)
    rows = [(key, *(" | ".join(dict.fromkeys(run.get(key, "") for run in side)) for side in facts)) for key in keys]
    return pd.DataFrame([row for row in rows if row[1] != row[2] or " | " in row[1]], columns=["key", "base", "new"])


def frame_of(keys: Sequence[Key]) -> pd.DataFrame:
    """The cases as a frame: a column for each axis and parameter, empty where a case has none."""
    return pd.DataFrame([dict(key) for key in keys]).fillna("") if keys else pd.DataFrame()


def names_of(cases: pd.DataFrame) -> pd.DataFrame:
    """Of `frame_of`, the columns by which a person tells the cases: the workload, the reduction, and what else varies."""
    return short(cases)


def _keys(cases: pd.DataFrame, apart: str) -> Iterator[Key]:
    names = columns_but_of(cases, [apart])
    texts = [cases[name].astype(object).map(spelled) for name in names]
    for values in zip(*texts, strict=True) if len(cases) else ():
        yield tuple((name, value) for name, value in zip(names, values, strict=True) if value)


def _metrics(run: Run, case_id: str, phases: bool) -> Iterator[tuple[str, Floats]]:
    times = run.times(case_id)
    yield TIME, times.launch_medians((times.clock, "step"))
    if phases:
        yield from _phases(times)
    launched = run.launched[(run.launched.case_id == case_id) & (run.launched.status == OK)]
    yield MEMORY, launched.peak_memory_bytes.to_numpy(dtype=np.float64)


def _phases(times: CaseTimes) -> Iterator[tuple[str, Floats]]:
    """The step's parts, by the clock that sees its work."""
    for clock, phase in times.slowest:
        if clock == times.clock and phase != "step":
            yield f"{TIME}.{phase}", np.maximum(times.launch_medians((clock, phase)), 0.0)


def _distances(run: Run) -> dict[str, Floats]:
    """Map case_id to `distances`, [launches]."""
    return {str(case_id): values.to_numpy() for case_id, values in distances(run).groupby(level=0)}


def _norms(run: Run) -> dict[str, pd.Series]:
    rows = run.norms[run.norms.group != ""]
    return {str(case_id): own.set_index("group").norm.astype(float) for case_id, own in rows.groupby("case_id", observed=True)}


def _order(run: Run) -> str:
    rounds = f" of {run.config.rounds} rounds" if run.config.order == "interleaved" else ""
    return f"order={run.config.order}{rounds}"


def _sequences(side: Side) -> Iterator[tuple[Run, tuple[Key, ...]]]:
    """Each run's launches, with their cases as they followed each other."""
    for number, run in enumerate(side.runs):
        called = {names[number]: key for key, names in side.keys.items() if number in names}
        for _, rows in run.launched.groupby("launch"):
            yield run, tuple(called[case_id] for case_id in rows.sort_values("position").case_id)


def _began(side: Side) -> list[str]:
    """When the launches began, in order; ISO 8601 in one time zone sorts as text."""
    return sorted(note["began"] for run in side.runs for note in run.environment.get("conditions", []) if note.get("began"))


def _facts(run: Run) -> dict[str, str]:
    """Configuration that figures depend on, and environment; nested keys dotted. Options and parameters make cases."""
    asked = values_affecting(run.config, "results", "times")
    return dict(_flat("", asked)) | dict(_flat("", machine_facts(run.environment)))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Of a list of hosts or ranks, each key's different values."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        pairs = [pair for one in value for pair in _flat(prefix, one)]
        for key in dict.fromkeys(key for key, _ in pairs):
            yield key, ", ".join(dict.fromkeys(text for name, text in pairs if name == key))
    else:
        yield prefix, str(value)
