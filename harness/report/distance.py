"""Distances of gradients: how NaN counts, and which rank is furthest. Every table, gate and export takes them from here."""

import numpy as np
import pandas as pd

from harness.schema.record import FULL_BATCH, REFERENCE, ROUNDED, SINGLE_RANK

REFERENCES = (REFERENCE, FULL_BATCH, ROUNDED, SINGLE_RANK)
"""Gradients that the whole gradient of a case is compared with."""


def as_distance(values: pd.Series) -> pd.Series:
    """Return the values with infinity for NaN: a gradient that contains NaN is further away than any other."""
    return values.astype(float).fillna(np.inf)


def furthest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row of the table `discrepancies` for each case, launch and reference: the rank that is furthest away.

    Only the whole gradient counts. `relative_l2` is infinite if it is NaN on any rank; other metrics are as measured.
    """
    whole = rows[rows.against.isin(REFERENCES) & (rows.parameter == "")]
    texts = {column: whole[column].astype(str) for column in ("case_id", "against")}
    whole = whole.assign(**texts, relative_l2=as_distance(whole.relative_l2))
    return whole.loc[whole.groupby(["case_id", "launch", "against"], sort=False).relative_l2.idxmax()].reset_index(drop=True)


def furthest_launches(rows: pd.DataFrame) -> pd.Series:
    """Map case_id to the launch that is furthest from `reference`, the first of equals. `rows`: result of `furthest`."""
    own = rows[rows.against == REFERENCE]
    launches: pd.Series = own.loc[own.groupby("case_id", sort=False).relative_l2.idxmax()].set_index("case_id").launch
    return launches
