"""Stale reads: how many of how many, naturally and delayed."""

import pandas as pd

from harness.report.tables import Table

_NOTE = (
    "Reads of all ranks. Stale: what was there before; torn: partly. A rate under a delay is no natural rate, and a natural "
    "zero of a hazard is no promise; what is safe must be 0. With the delay all ranks but the first join a collective late, "
    "and the first one's reads count."
)

_COUNTS = ["safe", "trials", "stale", "fresh", "torn"]
"""Quantities that the probe counts, of each access and setting."""
_MOST = 1e15
"""Larger than any count; a comparison with it also rejects NaN."""


def reads(rows: pd.DataFrame) -> pd.DataFrame:
    """Observations of the staleness probe to one row an access and setting: safe, trials, stale, fresh, torn."""
    counts = rows[rows.quantity.isin(_COUNTS) & (rows.value.astype(float).abs() < _MOST)]
    summed = counts.groupby([counts.subject.astype(str), counts.setting, counts.quantity], sort=False).value.sum().unstack()
    summed = summed.reindex(columns=_COUNTS).fillna(0)
    return summed.assign(safe=summed.safe > 0).reset_index()


def staleness_table(rows: pd.DataFrame) -> Table:
    """For a person: counts as `stale + torn of trials`."""
    counted = reads(rows)
    bad = counted.stale.astype(int).astype(str) + counted.torn.map(lambda torn: f" + {torn:.0f} torn" if torn else "")
    counted["shown"] = bad + " of " + counted.trials.astype(int).astype(str)
    wide = counted.pivot(index=["subject", "safe"], columns="setting", values="shown").reindex(
        pd.MultiIndex.from_frame(counted[["subject", "safe"]].drop_duplicates())
    )
    order = list(counted.setting.drop_duplicates())
    table = wide[order].reset_index()
    table["safe"] = table.safe.map({True: "safe", False: "hazard"})
    return Table(
        "Stale reads", table.rename(columns={"subject": "read", "safe": ""} | {name: f"stale, {name}" for name in order}), _NOTE
    )
