"""Why a case's gradient is not its reference: the verdicts, the weights that were not what they should be, the budget."""

from collections.abc import Iterator

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.tables import Table
from harness.report.text import number
from harness.schema.record import OF_WEIGHTS

_WHY = (
    "The verdict on each case, and the steps that make most of its distance from the full-batch float64 gradient. Floor: how "
    "far rounding alone may go. Sum replayed: what share of the collective's bits the same sum gives in one process."
)
_WEIGHTS = (
    "What the losses of a rank, or of a sample, really weigh in the gradient, beside what they should; by least squares in "
    "terms of their own float64 gradients. Samples are shown where they differ; ranks where their samples do not."
)
_SHOWN, _MOST_ROWS, _DIFFERS = 2, 40, 1e-3
_NOTHING = 1e-9
"""Of the right weight: rounding."""
_SMALL = 0.005
"""Of the distance: a step below it is not named."""


def why_tables(run: Run) -> Iterator[Table]:
    """None where the run was not asked for verdicts."""
    if run.diagnoses.empty:
        return
    rows = _verdicts(run)
    for position, (workload, group) in enumerate(rows.groupby("workload", sort=False)):
        yield Table(f"Why: {workload}", group.drop(columns="workload"), "" if position else _WHY)
    weights = _wrong_weights(run)
    if len(weights):
        yield Table("Weights that are not what they should be", weights.head(_MOST_ROWS), _WEIGHTS)


def _verdicts(run: Run) -> pd.DataFrame:
    labels = labelled(run.cases)
    told = run.diagnoses.assign(case_id=run.diagnoses.case_id.astype(str)).set_index("case_id")
    steps = _largest_steps(run)
    columns = {
        "verdict": told.verdict.str.replace("_", " "),
        "which": [_which(row) for row in told.itertuples()],
        "sure": told.confidence,
        "distance": told.distance.map(number),
        "floor": told.floor.map(number),
        "in float64": told.exact_distance.map(lambda value: "" if value != value else number(value)),
        "sum replayed": told.replayed.map(lambda share: "" if share != share else f"{share:.0%}"),
        "made of": told.index.map(steps.get),
    }
    return labels.join(pd.DataFrame(columns, index=told.index).fillna(""), how="right").reset_index(drop=True)


def _which(row: object) -> str:
    cause, verdict = str(getattr(row, "cause", "")), str(getattr(row, "verdict", ""))
    factor = getattr(row, "factor", float("nan"))
    words = " or ".join(part.replace("_", " ").replace("+", ", then ") for part in cause.split("|")) if cause != verdict else ""
    return f"{words} {factor:.4g}".strip() if factor == factor else words


def _largest_steps(run: Run) -> dict[str, str]:
    """case_id to the steps with the largest shares."""
    rows = run.budget.assign(case_id=run.budget.case_id.astype(str))
    rows = rows[rows.share.abs() >= _SMALL]
    rows = rows.loc[rows.share.abs().sort_values(ascending=False, kind="stable").index]
    found = {}
    for case_id, own in rows.groupby("case_id", sort=False):
        shown = own.head(_SHOWN)
        found[str(case_id)] = ", ".join(f"{stage} {share:.0%}" for stage, share in zip(shown.stage, shown.share, strict=True))
    return found


def _wrong_weights(run: Run) -> pd.DataFrame:
    """Of cases whose weights are what is wrong: every rank, and the samples that weigh something else."""
    suspects = run.diagnoses[run.diagnoses.verdict.isin(OF_WEIGHTS)].case_id.astype(str)
    rows = run.weights.assign(case_id=run.weights.case_id.astype(str))
    rows = rows[rows.case_id.isin(set(suspects))]
    if rows.empty:
        return rows
    whole = rows.groupby("case_id").expected.transform(lambda expected: expected.abs().max())
    rows = rows.assign(weight=rows.weight.where(~(rows.weight.abs() < _NOTHING * whole), 0.0))
    differs = ((rows.weight - rows.expected).abs() > _DIFFERS * rows.expected.abs()) | rows.weight.isna()
    by_sample = set(rows.case_id[rows["sample"] >= 0])  # where samples of a rank differ, the rank has no one weight
    rows = rows[differs | ((rows["sample"] < 0) & (rows.lag == 0))]
    rows = rows[(rows["sample"] >= 0) | ~rows.case_id.isin(by_sample)]
    return pd.DataFrame(
        {
            "case": rows.case_id,
            "rank": rows["rank"].astype(str) + rows.lag.map(lambda lag: ", iteration before" if lag else ""),
            "sample": rows["sample"].map(lambda place: "all" if place < 0 else str(place)),
            "weight": rows.weight.map(lambda value: "not identifiable" if value != value else number(value)),
            "should be": rows.expected.map(number),
            "ratio": [_ratio(*both) for both in zip(rows.weight, rows.expected, strict=True)],
        }
    )


def _ratio(weight: float, should: float) -> str:
    return number(weight / should) if should and weight == weight else ""
