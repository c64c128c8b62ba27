"""The two lines that come first: which gradient the ranks computed, and what it cost."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import milliseconds, number
from harness.schema.record import REFERENCE

_CLOSE = 1e-6
_EXPLAINING = ("fault", "other_function", "nonfinite", "unequal_denominators")
"""Kinds of findings that are a reason to be far from the reference."""


def answer(run: Run, discrepancies: pd.DataFrame, costs: pd.DataFrame) -> list[str]:
    """Two lines."""
    if discrepancies.empty or costs.empty:
        return [f"Nothing was measured: {_count(run)}.", "See the cases below."]
    return [_gradient(run, discrepancies), _cost(run, costs)]


def _count(run: Run) -> str:
    statuses = run.cases.status.value_counts().to_dict()
    counted = [f"{count} {status}" for status, count in statuses.items()]
    return ", ".join(counted + ([f"{len(run.missing)} missing"] if run.missing else []))


def _gradient(run: Run, rows: pd.DataFrame) -> str:
    rows, labels = rows[rows.against == REFERENCE], labelled(run.cases)
    close = rows[rows.relative_l2 <= _CLOSE]
    line = f"Gradients: {len(close)} of {len(rows)} measured cases are within {_CLOSE:g} (relative L2) of the float64 reference"
    furthest = rows.loc[rows.relative_l2.fillna(float("inf")).idxmax()]
    if len(close) == len(rows):
        return f"{line}; the furthest is {_name(labels, furthest.case_id)} at {number(furthest.relative_l2)}."
    explaining = run.findings[run.findings.kind.isin(_EXPLAINING)].case_id.astype(str)
    words = "; the findings below say why" if furthest.case_id in set(explaining) else ""
    return f"{line}; {_name(labels, furthest.case_id)} is {number(furthest.relative_l2)} away{words}."


def _cost(run: Run, costs: pd.DataFrame) -> str:
    clock = "cuda_event" if "cuda_event.step.median" in costs else "host"  # on CUDA the host may see the launch alone
    step = costs[f"{clock}.step.median"]
    ranges = step.groupby(costs.workload).agg(["idxmin", "idxmax"])
    ratio = (step[ranges["idxmax"]].to_numpy() / step[ranges["idxmin"]].to_numpy()).tolist()
    widest = ranges.iloc[ratio.index(max(ratio))]
    cheap, dear = widest["idxmin"], widest["idxmax"]
    labels = labelled(run.cases).drop(columns="workload")
    line = f"Cost: on {costs.workload[cheap]} a step takes {milliseconds(step[cheap])} ms with {_name(labels, cheap)}"
    if cheap != dear:
        line += f" and {milliseconds(step[dear])} ms with {_name(labels, dear)}, {max(ratio):.3g} times as much"
    rows = run.launched[run.launched.case_id == cheap]
    count, launches = rows.iterations.sum(), f" in {len(rows)} launches" if len(rows) > 1 else ""
    return f"{line} ({run.environment.get('world_size', '?')} ranks, slowest rank, median of {count}{launches})."


def _name(labels: pd.DataFrame, case_id: str) -> str:
    """A case by everything that varies in the run."""
    return " ".join(value for value in labels.loc[case_id] if value)
