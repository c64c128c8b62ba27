"""The two lines that come first: which gradient the ranks computed, and what it cost."""

from math import isinf, isnan

import pandas as pd

from harness.report.discrepancy import furthest_distances
from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.step_ratio import ITERATIONS, SPEED, StepRatio, widest
from harness.report.text import milliseconds, number
from harness.report.timing import Timing
from harness.schema.record import OK

_CLOSE = 1e-6
_EXPLAINING = ("fault", "other_function", "nonfinite", "unequal_denominators")
"""Kinds of findings that are a reason to be far from the reference."""
_ADVICE = {
    ITERATIONS: "more iterations in several rounds (order=interleaved)",
    "visits": "more iterations in more rounds",
    "launches": "more launches",
}
"""Advice on how to narrow an interval, by what it is made of."""


def answer(run: Run, costs: pd.DataFrame, timing: Timing) -> list[str]:
    """Two lines."""
    far = _furthest(run)
    if far.empty or costs.empty:
        return [f"Nothing was measured: {_count(run)}.", "See the cases below."]
    return [_gradient(run, far), _cost(run, costs, timing)]


def _count(run: Run) -> str:
    statuses = run.cases.status.value_counts().to_dict()
    counted = [f"{count} {status}" for status, count in statuses.items()]
    return ", ".join(counted + ([f"{len(run.missing)} missing"] if run.missing else []))


def _furthest(run: Run) -> pd.Series:
    """Return `furthest_distances` of the cases that no launch failed."""
    measured, far = run.cases.case_id[run.cases.status == OK], furthest_distances(run)
    return far[far.index.isin(set(measured))]


def _gradient(run: Run, far: pd.Series) -> str:
    labels, close = labelled(run.cases), far <= _CLOSE
    line = f"Gradients: {close.sum()} of {len(far)} measured cases are within {_CLOSE:g} (relative L2) of the float64 reference"
    furthest, distance = str(far.idxmax()), float(far.max())
    if close.all():
        return f"{line}; the furthest is {_name(labels, furthest)} at {number(distance)}."
    words = "; the findings below say why" if furthest in _explained(run) else ""
    away = "has no finite distance from it" if isinf(distance) else f"is {number(distance)} away"
    return f"{line}; {_name(labels, furthest)} {away}{words}."


def _explained(run: Run) -> set[str]:
    """Cases with a finding that is a reason to be far; unequal denominators are one where theory moves the gradient."""
    found = run.findings[run.findings.kind.isin(_EXPLAINING)]
    moved = set(run.cases.case_id[run.cases.predicted_relative_l2.fillna(0.0) > 0])
    return set(found.case_id[(found.kind != "unequal_denominators") | found.case_id.isin(moved)])


def _cost(run: Run, costs: pd.DataFrame, timing: Timing) -> str:
    found = widest(timing, costs.workload)
    clock = "cuda_event" if "cuda_event.step.median" in costs else "host"  # on CUDA the host may see the launch alone
    step, labels = costs[f"{clock}.step.median"], labelled(run.cases).drop(columns="workload")
    cheap = found.cheap if found else str(step.idxmin())
    line = f"on {costs.workload[cheap]} a step takes {milliseconds(step[cheap])} ms with {_name(labels, cheap)}"
    rows = run.launched[run.launched.case_id == cheap]
    launches = f" in {len(rows)} launches" if len(rows) > 1 else ""
    world = f"{run.environment.get('world_size', '?')} ranks, slowest rank, median of {rows.iterations.sum()}{launches}"
    if found is None:
        return f"Cost: {line} ({world})."
    line += f" and {milliseconds(step[found.dear])} ms with {_name(labels, found.dear)}"
    basis = f"{world}; 95 % for all {found.pairs} pairs of cases together" if found.pairs > 1 else f"{world}; 95 %"
    if isnan(found.low):
        return f"Cost: {line}; {found.units} {found.of} are too few to tell whether they differ ({world})."
    basis = f"{basis}, {_units(found)}"
    if found.claimed:
        return f"Cost: {line}, {found.ratio:.3g} times as much [{found.low:.3g}, {found.high:.3g}] ({basis})."
    return f"Cost: no difference was seen: {line}, and {_fitting(found)} ({basis}); {_ADVICE[found.of]} narrow that."


def _fitting(found: StepRatio) -> str:
    """The ratios that the samples leave open."""
    text = f"ratios from {found.low:.3g} to {found.high:.3g} fit the samples"
    if found.low <= 1:
        return text
    return f"{text}, of which up to {SPEED:g} may be a change of the machine's speed from one case to the next"


def _units(found: StepRatio) -> str:
    if found.of == ITERATIONS:
        return "from the iterations of one visit to each case"
    return f"from {found.units} {found.of}"


def _name(labels: pd.DataFrame, case_id: str) -> str:
    """A case by everything that varies in the run."""
    return " ".join(value for value in labels.loc[case_id] if value)
