"""Whether a difference matters: how far apart two modes are after some optimizer steps from equal parameters."""

import pandas as pd

from harness.report.distance import as_distance
from harness.report.frame import Run
from harness.report.labels import labelled, of_the_setting, reduction_names
from harness.report.text import number, yes
from harness.schema.record import CASE


def drift(run: Run) -> pd.DataFrame:
    """One row a pair of modes of one setting, optimizer and checkpoint."""
    rows = run.drifts
    if rows.empty:
        return rows
    labels = labelled(run.cases)
    names = reduction_names(labels)
    own, other = rows.case_id.astype(str), rows.against.str.removeprefix(CASE)
    pairs = labels.loc[own, of_the_setting(labels)].reset_index(drop=True)
    pairs["pair"] = [f"{names[theirs]} - {names[mine]}" for mine, theirs in zip(own, other, strict=True)]
    return pd.concat([pairs, rows.drop(columns=["case_id", "against"]).reset_index(drop=True)], axis=1)


def drift_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For a person: of each setting and optimizer the two modes that are furthest apart at the last checkpoint."""
    last = rows[rows.step == rows.step.max()].reset_index(drop=True)
    setting = [column for column in last.columns if column not in (*_NUMBERS, "pair")] + ["optimizer"]
    distance = as_distance(last.relative_l2)
    last = last.loc[distance.groupby([last[column].astype(str) for column in setting], sort=False).idxmax()]
    labels = last[[column for column in last.columns if column not in _NUMBERS]].rename(columns={"pair": "furthest pair"})
    return labels.assign(
        **{
            "optimizer": last.optimizer.astype(str),
            "parameters, relative L2": last.relative_l2.map(number),
            "bitwise equal": last.bitwise_equal.map(yes),
            "loss": last.against_loss.map("{:.6f}".format),
            "difference": (last.loss - last.against_loss).map(number),
        }
    )


_NUMBERS = ("optimizer", "step", "loss", "against_loss", "max_abs", "relative_l2", "bitwise_equal")
