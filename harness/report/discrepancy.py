"""How far each case's gradient is from the true one."""

import pandas as pd

from harness.report.distance import REFERENCES, as_distance
from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.norms import LOSS, NORM, beside_reference
from harness.report.text import number, yes
from harness.schema.record import FULL_BATCH, METRICS, RANK_0, REFERENCE, ROUNDED, SINGLE_RANK

WORST = "relative_l2"
"""The metric by which a distance is told in one number."""
_BESIDE = {
    FULL_BATCH: "relative L2, full batch",
    ROUNDED: "relative L2, rounded parameters",
    SINGLE_RANK: "relative L2, one rank alone",
}
"""Other yardsticks than the reference, and their columns."""


def discrepancy(run: Run) -> pd.DataFrame:
    """One row a measured case and reference: the metrics of the whole gradient, of the launch and rank that are furthest."""
    rows = run.furthest
    if rows.empty:
        return rows
    furthest = rows.loc[rows.groupby(["case_id", "against"])[WORST].idxmax()]
    return _joined(run, furthest[["case_id", "against", "launch", "rank", *METRICS]])


def distances(run: Run) -> pd.Series:
    """Relative L2 from the reference by case_id and launch, of the rank that is furthest; infinite if a rank has NaN."""
    rows = run.furthest
    series: pd.Series = rows[rows.against == REFERENCE].set_index(["case_id", "launch"])[WORST]
    return series


def furthest_distances(run: Run) -> pd.Series:
    """Relative L2 from the reference by case_id, of the launch and rank that are furthest."""
    return distances(run).groupby(level=0, sort=False).max()


def parameters(run: Run) -> pd.DataFrame:
    """One row a measured case, reference, rank and parameter, of the launch whose gradient is furthest from `reference`."""
    each = run.furthest_discrepancies
    if each.empty:
        return each
    each = each[each.against.isin(REFERENCES) & (each.parameter != "")]
    return _joined(run, each[["case_id", "against", "launch", "rank", "parameter", *METRICS]])


def discrepancy_table(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """For a person: one row a case, the references beside each other."""
    by_case = {against: group.set_index("case_id") for against, group in rows.groupby("against")}
    reference = by_case[REFERENCE]
    worst = _worst_parameter(run)
    columns = {
        "loss": beside_reference(run, LOSS, reference.launch),
        "gradient norm": beside_reference(run, NORM, reference.launch),
        "max abs": reference.max_abs.map(number),
        "relative L2": reference.relative_l2.map(number),
        "most of it from": reference.index.map(worst.get),
        **{
            name: by_case[against][WORST].map(number).reindex(reference.index, fill_value="")
            for against, name in _BESIDE.items()
            if against in by_case
        },
        "ranks equal": reference.index.map(_ranks_equal(run).get),
        "NaN or Inf": reference.nonfinite.map(number),
    }
    labels = reference[[column for column in reference.columns if column not in ("against", "launch", "rank", *METRICS)]]
    return pd.concat([labels, pd.DataFrame(columns, index=reference.index).fillna("")], axis=1)


def _worst_parameter(run: Run) -> dict[str, str]:
    """Map case_id to the parameter that most of the furthest launch's distance comes from, with its share of the square."""
    rows = run.furthest_discrepancies
    rows = rows[(rows.against == REFERENCE) & (rows.parameter != "")]
    rows = rows.assign(squared=as_distance(rows.l2**2), case_id=rows.case_id.astype(str))
    total = rows.groupby("case_id").squared.sum()
    worst = rows.loc[rows.groupby("case_id").squared.idxmax()]
    named = zip(worst.case_id, worst.parameter, worst.squared / total[worst.case_id].to_numpy(), strict=True)
    return {case_id: f"{name} {share:.0%}" if share > 0 else name for case_id, name, share in named if total[case_id]}


def _ranks_equal(run: Run) -> dict[str, str]:
    """Map case_id to `yes` where all ranks have equal bits in every launch, else `no`."""
    rows = run.whole_discrepancies
    rows = rows[rows.against == RANK_0]
    equal = rows.assign(case_id=rows.case_id.astype(str)).groupby("case_id").bitwise_equal.all()
    return {case_id: yes(value) for case_id, value in equal.items()}


def _joined(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    order = {case_id: place for place, case_id in enumerate(run.cases.case_id)}
    rows = rows.assign(case_id=rows.case_id.astype(str))
    rows = rows.sort_values("case_id", key=lambda column: column.map(order), kind="stable")
    return labelled(run.cases).join(rows.set_index("case_id"), how="right").rename_axis("case_id").reset_index()
