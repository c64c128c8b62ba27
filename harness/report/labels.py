"""How a case is called in a table: by what varies in the run, and nothing else."""

import pandas as pd

from harness.schema.case import AXES


def label_columns(cases: pd.DataFrame) -> list[str]:
    """The workload, the reduction, and every other axis or parameter that takes more than one value."""
    varying = [axis for axis in AXES if axis in ("workload", "reduction") or cases[axis].nunique() > 1]
    return varying + [column for column in parameter_columns(cases) if _varies_in_an_option(cases, column)]


def parameter_columns(cases: pd.DataFrame) -> list[str]:
    """Columns of the options' parameters, as `reduction.size`."""
    return sorted(column for column in cases.columns if column.split(".")[0] in AXES and column not in AXES)


def _varies_in_an_option(cases: pd.DataFrame, column: str) -> bool:
    return bool(
        cases[column].dropna().nunique() > 1 and cases.groupby(column.split(".")[0], observed=True)[column].nunique().max() > 1
    )


def reduction_names(labels: pd.DataFrame) -> dict[str, str]:
    """case_id to the reduction, with those of its parameters that vary; `labels` as `labelled` gives them."""
    names = labels.reduction.copy()
    for column in labels.columns:
        if column.startswith("reduction."):
            given = labels[column] != ""
            names[given] = names[given] + f" {column.removeprefix('reduction.')}=" + labels[column][given]
    return dict(zip(labels.index, names, strict=True))


def labelled(cases: pd.DataFrame) -> pd.DataFrame:
    """The label columns of every case, as text, indexed by case_id."""
    columns = label_columns(cases)
    table = cases.set_index("case_id")[columns]
    return table.apply(lambda column: column.map(spelled).astype(object))


def spelled(value: object) -> str:
    """A column in which some cases have nothing holds its whole numbers as floats."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
