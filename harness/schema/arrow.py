"""Arrow schemas of the declared tables, and the parameter columns of `cases`, which depend on the configuration.

One rule for all tables: text is string, whole numbers are int64, other numbers float64, truth values bool. A coded text is a
dictionary with int32 indices.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from harness.schema.case import AXES, Case
from harness.schema.declare import CASES, Column
from harness.schema.record import TABLES

CODED = pa.dictionary(pa.int32(), pa.string())
_TYPES: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_WORDS: dict[type, str] = {str: "text", int: "whole numbers", float: "numbers", bool: "truth values"}
_LARGEST = 2**63
Parameters = Mapping[str, type]
"""Name of a parameter column to the Python type of its values, in the order of the columns."""


def type_of(column: Column) -> pa.DataType:
    """Arrow type of a column."""
    return CODED if column.coded else _TYPES[column.kind]


def words_of(column: Column) -> str:
    """Name of a column's values, for errors and the documentation."""
    return _WORDS[column.kind]


def schema_of(table: str, parameters: Parameters | None = None) -> pa.Schema:
    """Schema of the files of a table; those of `cases` have the parameters' columns after the axes."""
    declared = TABLES[table].columns
    own = [pa.field(name, type_of(column)) for name, column in declared.items()]
    if table == CASES:
        place = 1 + max(list(declared).index(axis) for axis in AXES)
        own[place:place] = [pa.field(name, _TYPES[kind]) for name, kind in (parameters or {}).items()]
    return pa.schema(own)


def parameters_of(cases: Iterable[Case]) -> dict[str, type]:
    """Columns of the parameters of all cases of a configuration, sorted, each with one type for all its values.

    Truth values give bool, whole numbers int, whole and other numbers float, texts str. Any other mixture gives str, and so do
    whole numbers that an int64 cannot hold, and a column that is null everywhere.
    """
    found: dict[str, set[type]] = {}
    for case in cases:
        for name, value in case.parameters:
            found.setdefault(name, set()).update(() if value is None else (_kind(value),))
    return {name: _common(kinds) for name, kinds in sorted(found.items())}


def _kind(value: Any) -> type:
    """Type of one value; str for a number that its column could not hold."""
    return str if isinstance(value, int) and not -_LARGEST <= value < _LARGEST else type(value)


def _common(kinds: set[type]) -> type:
    if kinds == {int, float}:
        return float
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= _TYPES.keys() else str


def parameter_values(case: Case, parameters: Parameters) -> dict[str, Any]:
    """Value of every parameter column in the row of a case; null where the case has no such parameter, or where it is null.

    In a column of texts, texts stand as they are and other values as JSON spells them.
    """
    given = dict(case.parameters)
    return {name: _spelled(given.get(name), kind) for name, kind in parameters.items()}


def _spelled(value: Any, kind: type) -> Any:
    if kind is not str:
        return value if value is None else kind(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def coded(indices: Any, texts: Sequence[str]) -> pa.DictionaryArray:
    """Column of a coded text, from the index of each row's text (a list or an int32 array)."""
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(texts, pa.string()))
