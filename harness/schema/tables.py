"""Reading the Parquet files of a run directory, and checking them against the declarations of their tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.schema.arrow import schema_of, type_of, words_of
from harness.schema.case import Case
from harness.schema.declare import CASES, GROUP, MEASURED, OPTIONAL, PROBES, Column, Table
from harness.schema.reading import NotWholeError, is_there, open_file, reason
from harness.schema.record import CASE, OK, TABLES
from harness.schema.run_dir import HELD, RunDir
from harness.schema.without_pandas import keep_pandas_out

keep_pandas_out()

COLUMNS = {name: list(table.columns) for name, table in TABLES.items()}
"""Names of the columns that every file of a table has, by table; `cases` has those of the parameters besides."""
LONGEST = 2**18
"""Largest number of bytes of a text: reports format texts character by character."""


def read_rows(file: Path, name: str, launch: int = 0) -> pa.Table:
    """Rows of a file, in the declared columns and types. `name`: the case, or probe, that it is of; of a part, the probe.

    Columns that are not declared are ignored: a later version may have added them. Raise NotWholeError for a file that cannot
    be read, belongs to another case, lacks a column, or contains values that no rank writes.
    """
    table = TABLES[file.parent.name]
    rows = _typed(table, _read(file, table))
    _check_owner(table, rows, name, launch)
    _check_rows(table, rows)
    return rows


def read_samples(file: Path) -> pa.Table:
    """Rows of a file of samples that read_rows has read before; not checked again. Raise NotWholeError."""
    return _typed(TABLES["samples"], _read(file, TABLES["samples"]))


def why_not_whole(file: Path, name: str, launch: int = 0) -> str:
    """Reason why read_rows refuses the file; empty if it accepts it."""
    try:
        read_rows(file, name, launch)
    except NotWholeError as error:
        return str(error)
    return ""


def is_whole(file: Path, name: str, launch: int = 0) -> bool:
    """True if read_rows accepts it."""
    return not why_not_whole(file, name, launch)


@dataclass(frozen=True)
class Finished:
    """Files of a finished case, or probe, as one launch wrote them."""

    rows: dict[str, pa.Table]
    """Table to its rows; rows of a large table are checked and not kept."""
    damaged: dict[Path, str]
    """Files that are missing or not whole, and why."""


def read_finished(run_dir: RunDir, kind: str, name: str, launch: int = 0) -> Finished:
    """Read all files of a case, or probe, whose row is there; `kind` is a key of HELD."""
    rows, damaged, absent = dict[str, pa.Table](), dict[Path, str](), dict[str, Path]()
    for table in HELD[kind]:
        file = run_dir.case_file(table, name, launch)
        try:
            read = read_rows(file, name, launch) if is_there(file) else None
        except NotWholeError as error:
            damaged[file] = str(error)
            continue
        if read is None:
            absent[table] = file
        else:
            rows[table] = read.slice(0, 0) if TABLES[table].large else read
    damaged |= {file: "missing" for table, file in absent.items() if table in _needed(kind, rows)}
    return Finished(rows, damaged)


def read_case(run_dir: RunDir, case: Case, launch: int = 0) -> Finished:
    """Read all files of a case whose row is there; a row with other options than the configuration's is damaged, too."""
    found = read_finished(run_dir, "cases", case.case_id, launch)
    row = found.rows["cases"].to_pylist()[0] if "cases" in found.rows else case.options
    unlike = "; ".join(f"column {axis}: expected {option}" for axis, option in case.options.items() if row[axis] != option)
    damaged = {run_dir.case_file("cases", case.case_id, launch): unlike} if unlike else {}
    return Finished(found.rows, found.damaged | damaged)


def _needed(kind: str, rows: dict[str, pa.Table]) -> list[str]:
    """Tables in which a file must be there."""
    tables = [TABLES[name] for name in HELD[kind]]
    if kind == PROBES:
        return [table.name for table in tables if table.needed != OPTIONAL]
    if CASES not in rows or rows[CASES]["status"][0].as_py() != OK:
        return []
    needed = {MEASURED, *([GROUP] if any(TABLES[name].needed == GROUP for name in rows) else [])}
    return [table.name for table in tables if table.needed in needed or _is_number(rows[CASES], table.needed_with)]


def _is_number(row: pa.Table, column: str) -> bool:
    return bool(column) and not isnan(row[column][0].as_py())


def part_files(run_dir: RunDir, part: str) -> dict[str, Path]:
    """Table to the file of a part of a probe; without the optional tables that have none."""
    files = {table: run_dir.case_file(table, part) for table in HELD[PROBES]}
    return {table: file for table, file in files.items() if TABLES[table].needed != OPTIONAL or is_there(file)}


def _read(file: Path, table: Table) -> pa.Table:
    """All rows, in the declared columns as far as they are there, valid by Arrow's own rules."""
    try:
        with open_file(file, folders=1) as opened, pq.ParquetFile(opened) as parquet:
            names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
            sources = {name: _source(name, column, names) for name, column in table.columns.items()}
            if rows > table.most_rows:
                raise NotWholeError(f"{rows} rows, of which {table.most_rows} are read at most")
            there = {name: source for name, source in sources.items() if source}
            read = parquet.read(columns=list(there.values())).select(list(there.values())).rename_columns(list(there))
        read.validate(full=True)
        read = read.unify_dictionaries()  # row groups may have their own
    except (OSError, ValueError, TypeError, MemoryError, NotImplementedError, pa.ArrowException) as error:
        raise NotWholeError(reason(error)) from error
    return read.replace_schema_metadata(None)


def has_schema(file: Path, schema: pa.Schema) -> bool:
    """True if a file has just these columns and types. Raise NotWholeError for a file that cannot be read."""
    try:
        with open_file(file, folders=1) as opened, pq.ParquetFile(opened) as parquet:
            return bool(parquet.schema_arrow.equals(schema))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise NotWholeError(reason(error)) from error


def _source(name: str, column: Column, names: Sequence[str]) -> str:
    """Name of a column in a file: its own or its former one; empty if the file lacks it and may."""
    for source in filter(None, (name, column.formerly)):
        if names.count(source) == 1:
            return source
        if source in names:
            break
    else:
        if column.since:
            return ""
    raise NotWholeError(f"no column {name}, or several")


def _typed(table: Table, read: pa.Table) -> pa.Table:
    """Each column as it is declared; what a file lacks has its default."""
    columns = {}
    for name, column in table.columns.items():
        if name in read.column_names:
            columns[name] = _cast(name, column, read[name])
        else:
            columns[name] = pa.chunked_array([pa.repeat(pa.scalar(column.default, type_of(column)), read.num_rows)])
        _check_values(table.name, name, columns[name])
    return pa.table(columns, schema=schema_of(table.name))


def _cast(name: str, column: Column, values: pa.ChunkedArray) -> pa.ChunkedArray:
    plain = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not _fits(column.kind, plain):
        raise NotWholeError(f"column {name}: expected {words_of(column)}, found {str(values.type)[:40]}")
    try:
        if column.coded and not pa.types.is_dictionary(values.type):
            values = values.cast(pa.string()).dictionary_encode()
        values = values.cast(type_of(column))
        if column.kind is float:
            return values.fill_null(nan)  # pandas writes one for the other
    except pa.ArrowException as error:
        raise NotWholeError(f"column {name}: {reason(error)}") from error
    if values.null_count:
        raise NotWholeError(f"column {name}: {values.null_count} rows without a value")
    return values


def _fits(kind: type, found: pa.DataType) -> bool:
    """True if values of an Arrow type can be read as values of a kind."""
    if kind is str:
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    number = pa.types.is_integer(found) or pa.types.is_floating(found)
    return bool(number or (kind is bool and pa.types.is_boolean(found)))


def _check_values(table: str, name: str, values: pa.ChunkedArray) -> None:
    """Raise NotWholeError for values that the declaration of the column excludes."""
    column = TABLES[table].columns[name]
    if not len(values):
        return
    if column.kind is str:
        _check_texts(name, column, values)
    elif column.kind in (int, float):
        _check_numbers(name, column, values.to_numpy())


def _check_texts(name: str, column: Column, values: pa.ChunkedArray) -> None:
    texts = pa.chunked_array([chunk.dictionary for chunk in values.chunks] if column.coded else values.chunks, pa.string())
    if texts.null_count:
        raise NotWholeError(f"column {name}: a null among its texts")
    if len(texts) and pc.max(pc.binary_length(texts)).as_py() > LONGEST:
        raise NotWholeError(f"column {name}: a text of more than {LONGEST} bytes")
    if column.values and set(texts.unique().to_pylist()) - set(column.values):
        *first, last = column.values
        raise NotWholeError(f"column {name}: expected {', '.join(first)} or {last}")


def _check_numbers(name: str, column: Column, numbers: NDArray[Any]) -> None:
    if column.finite and not np.isfinite(numbers).all():
        raise NotWholeError(f"column {name}: expected finite {'seconds' if column.unit == 's' else 'numbers'}")
    least, above, most = column.least, column.above, column.most
    if least is None and above is None and most is None:
        return
    known = numbers[~np.isnan(numbers)] if column.kind is float else numbers
    if least is not None and most is not None and ((known < least) | (known > most)).any():
        raise NotWholeError(f"column {name}: expected numbers from {least:g} to {most:g}, or NaN")
    if least is not None and (known < least).any():
        raise NotWholeError(f"column {name}: expected numbers of at least {least:g}")
    if above is not None and (known <= above).any():
        raise NotWholeError(f"column {name}: expected numbers above {above:g}")
    if least is None and most is not None and (known > most).any():
        raise NotWholeError(f"column {name}: expected numbers of at most {most:g}")


def _check_owner(table: Table, rows: pa.Table, name: str, launch: int) -> None:
    """Raise NotWholeError for rows of another case, probe or launch.

    After a resume the file may also contain rows of a later case that was compared with this one. A file that marks a case or
    probe as finished may not be empty.
    """
    owners = _different(rows, "case_id" if table.of == CASES else "probe")
    if "against" in table.columns:
        own = rows.filter(pc.not_equal(rows["against"], f"{CASE}{name}"))
        owners = _different(own, "case_id")
    if owners - {name} or (table.name == table.of and not rows.num_rows):
        raise NotWholeError(f"expected rows of {name}")
    if table.launched and _different(rows, "launch") - {launch}:
        raise NotWholeError(f"expected rows of launch {launch}")


def _check_rows(table: Table, rows: pa.Table) -> None:
    """Raise NotWholeError for rows that the declaration of the table excludes."""
    key = list(table.key)
    if key and rows.select(key).group_by(key).aggregate([]).num_rows < rows.num_rows:
        raise NotWholeError(f"several rows of the same {', '.join(key)}")
    if table.single and rows.num_rows != 1:
        raise NotWholeError(f"expected one row, found {rows.num_rows}")
    if table.required and not _has(rows, table.required):
        wanted = ", ".join(f"{column} {value!r}" for column, value in table.required.items())
        raise NotWholeError(f"no row with {wanted}")
    if table.check is not None:
        table.check(rows)


def _has(rows: pa.Table, values: Mapping[str, str]) -> bool:
    for column, value in values.items():
        rows = rows.filter(pc.equal(rows[column], value))
    return bool(rows.num_rows)


def _different(rows: pa.Table, column: str) -> set[Any]:
    return set(rows[column].unique().to_pylist())
