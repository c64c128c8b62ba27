"""Pairs of reduction modes, for the stories."""

import pandas as pd

from harness.report.frame import Run
from harness.report.stories.claims import NotSeenError
from harness.schema.record import CASE, METRICS


def pairs(run: Run, one: str = "", other: str = "", *, fault: str = "none", precision: str = "") -> pd.DataFrame:
    """Every comparison of two modes of one setting, in either order: the axes, `samples`, `one`, `other`, and the metrics.

    An empty word stands for any. Raises NotSeenError where there is none.
    """
    rows = run.discrepancies
    rows = rows[rows.against.astype(str).str.startswith(CASE) & (rows.parameter == "")]
    cases = _cases(run)
    reductions = cases.set_index("case_id").reduction
    table = rows[["case_id", *METRICS]].assign(case_id=rows.case_id.astype(str)).merge(cases, on="case_id")
    table = table.rename(columns={"reduction": "other"})
    predicted = cases.set_index("case_id").predicted_max_abs
    theirs = rows.against.astype(str).str.removeprefix(CASE)
    table["one"] = [reductions[other] for other in theirs]
    table["predicted"] = [predicted[other] for other in theirs]
    table["predicted"] = table.predicted.fillna(table.predicted_max_abs)  # of the one that a fault acts on
    found = table[((table.fault == fault) | (not fault)) & table.precision.str.contains(precision, regex=False)]
    if one:
        found = found[((found.one == one) & (found.other == other)) | ((found.one == other) & (found.other == one))]
    if found.empty:
        what = f"{one} and {other}" if one else "two modes"
        raise NotSeenError(
            f"this run does not compare {what} with fault={fault}" + f", precision={precision}" * bool(precision)
        )
    return found


def _cases(run: Run) -> pd.DataFrame:
    """Axes as texts, `samples` of the global batch, and what theory predicts."""
    cases = run.cases
    axes = ["workload", "reduction", "normalization", "precision", "fault"]
    table = cases[["case_id", "world_size", "predicted_max_abs"]].assign(**{axis: cases[axis].astype(str) for axis in axes})
    own = cases["workload.samples"] if "workload.samples" in cases else pd.Series(None, cases.index, dtype=object)
    return table.assign(samples=pd.to_numeric(own).fillna(run.config.global_batch_size).astype(int))
