"""How a case is called in a table: by what varies in the run, and nothing else."""

from collections import defaultdict
from collections.abc import Iterable

import pandas as pd

from harness.schema.case import AXES, COMPARED, TABLE, ParameterName


def parameter_columns(cases: pd.DataFrame) -> list[str]:
    """Columns of the options' parameters, as `reduction.micro_batch.size`."""
    return sorted(map(str, _parameters(cases)))


def _parameters(cases: pd.DataFrame) -> list[ParameterName]:
    return sorted(filter(None, map(ParameterName.parse, map(str, cases.columns))))


def axis_of(column: str) -> str:
    """Axis that a column, or a label, is of; any other text itself."""
    return column.partition(".")[0]


def columns_but_of(cases: pd.DataFrame, apart: Iterable[str]) -> list[str]:
    """Columns of axes and parameters, without those of the axes `apart`."""
    return [column for column in (*AXES, *parameter_columns(cases)) if axis_of(column) not in apart]


def values_of(cases: pd.DataFrame, axis: str, parameter: str) -> pd.Series:
    """A parameter of each case's option on an axis, as text; empty where the option has none, or null."""
    return _joined(cases, [name for name in _parameters(cases) if (name.axis, name.parameter) == (axis, parameter)])


def short(cases: pd.DataFrame) -> pd.DataFrame:
    """Axes and parameters that tell the cases apart, as text.

    Equally named parameters of an axis share the column `axis.parameter`: the option stands in the axis's own column.
    """
    labels = defaultdict[str, list[ParameterName]](list)
    for name in _parameters(cases):
        labels[name.label].append(name)
    found = {axis: cases[axis].map(spelled).astype(object) for axis in AXES if axis in cases and _is_shown(cases, axis)}
    found |= {label: _joined(cases, labels[label]) for label in sorted(labels) if _vary(cases, labels[label])}
    return pd.DataFrame(found, index=cases.index)


def _is_shown(cases: pd.DataFrame, axis: str) -> bool:
    return TABLE[axis].always_shown or cases[axis].nunique() > 1


def _vary(cases: pd.DataFrame, names: list[ParameterName]) -> bool:
    """True if cases with the same option differ in a parameter: null is a value."""
    return any(cases[str(name)][cases[name.axis] == name.option].map(spelled).nunique() > 1 for name in names)


def _joined(cases: pd.DataFrame, names: list[ParameterName]) -> pd.Series:
    texts = pd.Series("", cases.index, dtype=object)
    for name in names:
        texts = texts.where(texts != "", cases[str(name)].map(spelled).astype(object))
    return texts


def reduction_names(labels: pd.DataFrame) -> dict[str, str]:
    """case_id to the reduction, with those of its parameters that vary; `labels` as `labelled` gives them."""
    names = labels[COMPARED].copy()
    for column in labels.columns:
        if axis_of(column) == COMPARED and column != COMPARED:
            given = labels[column] != ""
            names[given] = names[given] + f" {column.partition('.')[2]}=" + labels[column][given]
    return dict(zip(labels.index, names, strict=True))


def of_the_setting(labels: pd.DataFrame) -> list[str]:
    """Columns that two compared reductions of a setting have in common."""
    return [column for column in labels.columns if axis_of(column) != COMPARED]


def labelled(cases: pd.DataFrame) -> pd.DataFrame:
    """The label columns of every case, as text, indexed by case_id."""
    return short(cases.set_index("case_id"))


def spelled(value: object) -> str:
    """A column in which some cases have nothing holds its whole numbers as floats."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
