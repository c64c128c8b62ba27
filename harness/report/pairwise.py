"""How far the reduction modes are from each other: one row a pair of modes of one setting."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled, of_the_setting, reduction_names
from harness.report.text import number, yes
from harness.schema.record import CASE, METRICS

_KEPT = ["max_abs", "relative_l2", "max_ulp", "mismatched_fraction", "bitwise_equal", "nonfinite"]


def pairwise(run: Run) -> pd.DataFrame:
    """The pairs in the order of the run, with the metrics of the whole gradient: `reduction` held against `other`."""
    rows = run.discrepancies
    if rows.empty:
        return rows
    rows = rows[rows.against.str.startswith(CASE) & (rows.parameter == "")]
    labels = labelled(run.cases)
    own, other = rows.case_id.astype(str), rows.against.str.removeprefix(CASE)
    names = reduction_names(labels)
    pairs = labels.loc[own, of_the_setting(labels)].reset_index(drop=True)
    pairs["pair"] = [f"{names[theirs]} - {names[mine]}" for mine, theirs in zip(own, other, strict=True)]
    return pd.concat([pairs, rows[_KEPT].reset_index(drop=True)], axis=1)


def pairwise_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """For a person."""
    labels = pairs[[column for column in pairs.columns if column not in METRICS]]
    return labels.assign(
        **{
            "max discrepancy": pairs.max_abs.map(number),
            "relative L2": pairs.relative_l2.map(number),
            "bitwise equal": pairs.bitwise_equal.map(yes),
        }
    )
