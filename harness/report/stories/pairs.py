"""Pairs of reduction modes, for the stories."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import values_of
from harness.report.stories.claims import NotSeenError
from harness.schema.case import AXES, COMPARED
from harness.schema.record import CASE, METRICS

_OPEN = (COMPARED, "fault")
"""Axes that are no part of a setting's name."""


def pairs(run: Run, one: str = "", other: str = "", *, fault: str = "none", precision: str = "") -> pd.DataFrame:
    """Every comparison of two modes of one setting, in either order: the axes, `setting`, `one`, `other`, and the metrics.

    `predicted` is how far theory puts the two apart, where it puts only one of them away from the reference; else NaN. An empty
    word stands for any. Raises NotSeenError where there is none.
    """
    found = _all(run)
    found = found[((found.fault == fault) | (not fault)) & ((found.precision == precision) | (not precision))]
    if one:
        found = found[((found.one == one) & (found.other == other)) | ((found.one == other) & (found.other == one))]
    if found.empty:
        asked = {"fault": fault, "precision": precision}
        words = ", ".join(f"{axis}={option}" for axis, option in asked.items() if option)
        raise NotSeenError(
            f"this run does not compare {one or 'one mode'} and {other or 'another'}" + f" with {words}" * bool(words)
        )
    return found


def _all(run: Run) -> pd.DataFrame:
    rows = run.discrepancies
    if rows.empty:
        raise NotSeenError("this run has measured nothing")
    rows = rows[rows.against.astype(str).str.startswith(CASE) & (rows.parameter == "")]
    cases = _cases(run)
    own, theirs = rows.case_id.astype(str), rows.against.astype(str).str.removeprefix(CASE)
    table = cases.loc[own].reset_index(drop=True).rename(columns={"reduction": "other"})
    table["one"] = theirs.map(cases.reduction).to_numpy()
    predictions = pd.DataFrame({"own": table.predicted_max_abs, "other": theirs.map(cases.predicted_max_abs).to_numpy()})
    table["predicted"] = predictions.max(axis=1).where(predictions.count(axis=1) == 1)
    return pd.concat([table, rows[list(METRICS)].reset_index(drop=True)], axis=1)


def _cases(run: Run) -> pd.DataFrame:
    """By case_id: the axes as texts, `samples` of the global batch, what theory predicts, and the setting's name."""
    cases = run.cases.set_index("case_id")
    table = cases[["world_size", "predicted_max_abs"]].assign(**{axis: cases[axis].astype(str) for axis in AXES})
    own = values_of(cases, "workload", "samples")
    table["samples"] = pd.to_numeric(own.where(own != "")).fillna(run.config.global_batch_size).astype(int)
    varying = [axis for axis in AXES if axis not in _OPEN and table[axis].nunique() > 1]
    table["setting"] = table[[*varying, "samples"]].astype(str).agg(", ".join, axis=1)
    return table
