"""Loss and gradient norm beside their references, and the groups of parameters that a distance comes from."""

from math import isfinite, isnan

import numpy as np
import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import number

LOSS, NORM = "loss", "gradient_norm"
"""Columns of `cases`; each has a reference."""
FAR = 1e-6
"""Relative L2 from which the groups of a case are shown: below, they show how float32 rounds."""
GROUPS, CASES = 3, 3
"""Number of groups of a case, and of cases of a workload, that are shown."""


def known(run: Run, column: str) -> bool:
    """True if a figure of `cases` was recorded for any case of the run."""
    return bool(is_known(run.cases, column).any())


def is_known(rows: pd.DataFrame, column: str) -> pd.Series:
    """True for rows of `cases` whose figure was recorded. It may be NaN; its reference is a number then.

    Rows of earlier versions have neither figure. A reduction that passes no loss to `work.note` has neither loss.
    """
    return rows[[column, f"reference_{column}"]].notna().any(axis=1)


def beside_reference(run: Run, column: str, launches: pd.Series) -> pd.Series:
    """Return a figure of `cases` of each case, with its reference in parentheses where the shown digits differ.

    launches: case_id to the launch whose figure is shown. Empty where the figure is not known.
    """
    figures = run.launched.set_index(["case_id", "launch"])
    rows = figures.reindex(pd.MultiIndex.from_arrays([launches.index.astype(str), launches]))
    shown = [_both(*pair) for pair in zip(rows[column], rows[f"reference_{column}"], strict=True)]
    return pd.Series(shown, launches.index, dtype=object).where(is_known(rows, column).to_numpy(), "")


def digits(value: float) -> str:
    """Four digits, as of a loss or a norm."""
    return f"{value:.4g}" if isfinite(value) and (value == 0 or 1e-3 <= abs(value) < 1e5) else number(value)


def norms(run: Run) -> pd.DataFrame:
    """One row a measured case and group: norms, distance, and the group's share of the case's squared distance.

    The rows are those of the launch that is furthest from `reference`; column `launch` names it.
    """
    rows = run.furthest_norms
    if rows.empty:
        return rows
    rows = rows.assign(case_id=rows.case_id.astype(str))
    total = rows[rows.group == ""].set_index("case_id").l2.astype(float).pow(2)
    of_case = rows.case_id.map(total).astype(float)
    share = (rows.l2.astype(float).pow(2) / of_case.where(of_case > 0)).rename("share")
    rows = rows.assign(share=share.where(np.isfinite(share)))
    labels = labelled(run.cases)
    order = {case_id: place for place, case_id in enumerate(run.cases.case_id)}
    rows = rows.sort_values("case_id", key=lambda column: column.map(order), kind="stable")
    return labels.join(rows.set_index("case_id"), how="right").rename_axis("case_id").reset_index()


def norms_table(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """For a person: of the cases that are far, furthest first, the groups that most of the distance comes from."""
    whole = rows[rows.group == ""].set_index("case_id")
    distance = whole.relative_l2.astype(float).fillna(np.inf).sort_values(ascending=False, kind="stable")
    groups = rows[rows.group != ""]
    several = groups.groupby("case_id").group.nunique() > 1
    far = [case_id for case_id in distance.index[distance > FAR] if several.get(case_id, False)]
    chosen = pd.Series(far, dtype=object).groupby(whole.workload.reindex(far).to_numpy(dtype=object)).head(CASES)
    parts = [_largest(groups[groups.case_id == case_id]) for case_id in chosen]
    shown = pd.concat(parts) if parts else groups.head(0)
    labels = shown[["case_id", *labelled(run.cases).columns]]
    columns = {
        "group": shown.group,
        "parameters": shown.num_parameters.map(str),
        "norm": [_both(*pair) for pair in zip(shown.norm, shown.reference_norm, strict=True)],
        "relative L2": shown.relative_l2.map(number),
        "share of the squared distance": shown.share.map(lambda share: "" if isnan(share) else f"{share:.0%}"),
    }
    return pd.concat([labels, pd.DataFrame(columns, index=shown.index)], axis=1)


def _largest(groups: pd.DataFrame) -> pd.DataFrame:
    """Return the groups with the largest distance; NaN counts as infinite."""
    l2 = groups.l2.astype(float).fillna(np.inf)
    return groups.loc[l2.sort_values(ascending=False, kind="stable").index].head(GROUPS)


def _both(value: float, reference: float) -> str:
    own, right = digits(float(value)), digits(float(reference))
    if isnan(value) and isnan(reference):
        return ""
    return own if own == right else f"{own} ({right})"
