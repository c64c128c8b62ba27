"""Where theory moves a gradient away from the reference, by a fault or a normalization: predicted beside measured."""

import pandas as pd

from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.text import number
from harness.schema.record import PREDICTED, REFERENCE


def prediction(run: Run) -> pd.DataFrame:
    """One row a case with a prediction, of rank 0: its distance from the reference, predicted and measured, and their own."""
    rows = run.discrepancies
    if rows.empty:
        return rows
    whole = rows[(rows.parameter == "") & (rows["rank"] == 0)].assign(case_id=rows.case_id.astype(str)).set_index("case_id")
    expected, measured = (whole[whole.against == against] for against in (PREDICTED, REFERENCE))
    cases = run.cases.set_index("case_id")
    table = labelled(run.cases).join(
        pd.DataFrame(
            {
                "predicted_relative_l2": cases.predicted_relative_l2,
                "measured_relative_l2": measured.relative_l2,
                "from_prediction": expected.relative_l2,
            }
        ),
        how="right",
    )
    return table[table.from_prediction.notna()].reset_index(names="case_id")


def prediction_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For a person."""
    labels = rows.drop(columns=["predicted_relative_l2", "measured_relative_l2", "from_prediction"])
    return labels.assign(
        **{
            "predicted": rows.predicted_relative_l2.map(number),
            "measured": rows.measured_relative_l2.map(number),
            "measured from predicted": rows.from_prediction.map(number),
        }
    )
