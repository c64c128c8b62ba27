"""Content of the Parquet files of a run directory: the columns of each table, and reading that checks them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from harness.schema.case import AXES, Case
from harness.schema.reading import NotWholeError, is_there, open_file, reason
from harness.schema.record import (
    CASE,
    CUDA_QUEUED,
    FAILED,
    METRICS,
    OK,
    REFERENCE,
    SKIPPED,
    Asked,
    Device,
    Diagnosis,
    Drift,
    Finding,
    Floor,
    Memory,
    Norm,
    Observation,
    Outcome,
    Step,
    Timing,
    Weight,
)
from harness.schema.run_dir import DIAGNOSED, HELD, RunDir

_TEXT, _WHOLE, _REAL, _FLAG = str, int, float, bool
_OF_CASE = {"case_id": _TEXT, "launch": _WHOLE}
_OF_PROBE = {"probe": _TEXT, "subject": _TEXT, "rank": _WHOLE}


def _kinds(row: type) -> dict[str, type]:
    """Map each field to its type."""
    return {field.name: field.type for field in fields(row)}  # type: ignore[misc]


KINDS: dict[str, dict[str, type]] = {
    "cases": {"launch": _WHOLE, **dict.fromkeys(AXES, _TEXT), **_kinds(Outcome)},
    "samples": {
        **_OF_CASE,
        **dict.fromkeys(("rank", "visit", "iteration"), _WHOLE),
        "warm_up": _FLAG,
        **dict.fromkeys(("phase", "clock"), _TEXT),
        "seconds": _REAL,
    },
    "memory": {"launch": _WHOLE, **_kinds(Memory)},
    "devices": {"launch": _WHOLE, **_kinds(Device)},
    "discrepancies": {
        **_OF_CASE,
        "rank": _WHOLE,
        **dict.fromkeys(("against", "parameter"), _TEXT),
        **dict.fromkeys(METRICS, _REAL),
        "bitwise_equal": _FLAG,
        "nonfinite": _WHOLE,
    },
    "norms": {"launch": _WHOLE, **_kinds(Norm)},
    "findings": {"launch": _WHOLE, **_kinds(Finding)},
    "drifts": {"launch": _WHOLE, **_kinds(Drift)},
    "diagnoses": {"launch": _WHOLE, **_kinds(Diagnosis)},
    "weights": {"launch": _WHOLE, **_kinds(Weight)},
    "budget": {"launch": _WHOLE, **_kinds(Step)},
    "floors": {"launch": _WHOLE, **_kinds(Floor)},
    "probes": _kinds(Asked),
    "observations": {**_OF_PROBE, **_kinds(Observation)},
    "collectives": {**_OF_PROBE, **_kinds(Timing)},
}
"""Columns of every file of a table, by table, and their types."""
COLUMNS = {table: list(kinds) for table, kinds in KINDS.items()}
"""Names of the columns, by table."""
KEYS = {
    "cases": ["case_id"],
    "memory": ["case_id", "rank"],
    "devices": ["case_id", "rank"],
    "discrepancies": ["case_id", "rank", "against", "parameter"],
    "norms": ["case_id", "group"],
    "drifts": ["case_id", "against", "optimizer", "step"],
    "diagnoses": ["case_id"],
    "weights": ["case_id", "rank", "sample", "lag"],
    "budget": ["case_id", "step"],
    "floors": ["case_id", "parameter"],
    "probes": ["subject"],
}
"""Columns whose values together identify one row of a file."""
_ADDED = {"cases": ("loss", "reference_loss", "gradient_norm", "reference_gradient_norm")}
"""Columns that runs made before they were added lack; NaN there."""
MEASURED = ("samples", "memory", "discrepancies", "findings")
"""Tables in which each case with status ok has a file."""

_MOST_ROWS = {"samples": 2**24, "collectives": 2**24, "discrepancies": 2**22}
_MOST_OTHERS = 2**20
"""Largest number of rows of a file: a small file can declare more than fit into memory. A case of
1,024 ranks has 2**18 samples a launch."""
LONGEST = 2**18
"""Largest number of bytes of a text: reports format texts character by character."""
_FITTING: dict[type, tuple[str, Callable[[pa.DataType], bool], pa.DataType]] = {
    _TEXT: ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind), pa.string()),
    _WHOLE: ("whole numbers", lambda kind: _is_number(kind), pa.int64()),
    _REAL: ("numbers", lambda kind: _is_number(kind), pa.float64()),
    _FLAG: ("truth values", lambda kind: _is_number(kind) or pa.types.is_boolean(kind), pa.bool_()),
}
"""Map the type of a column to its name, to the accepted Arrow types, and to the type after reading."""
_SECONDS = ("seconds", "wall_s", "reference_s", "compare_s", "clock_uncertainty_s", "exact_seconds")
_COUNTS = (
    *("launch", "iteration", "visit", "position", "world_size", "num_parameters", "gradient_bytes", "iterations", "warm_up"),
    *("bytes", "count", "step", "independent", "samples", "idle", "reserved_bytes", "alloc_retries"),
)
"""Columns without negative numbers."""


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def read_rows(file: Path, name: str, launch: int = 0) -> pa.Table:
    """Rows of a file, in the declared columns and types. `name`: the case, or probe, that it is of; of a part, the probe.

    Raise NotWholeError for any other file: one that cannot be read, belongs to another case, lacks a column,
    or contains values that no rank writes.
    """
    table = file.parent.name
    rows = _typed(table, _read(file, table))
    _check_owner(table, rows, name, launch)
    _check_key(table, rows)
    for check in _CHECKS.get(table, ()):
        check(rows)
    return rows


def read_samples(file: Path) -> pa.Table:
    """Rows of a file of samples that read_rows has read before; not checked again. Raise NotWholeError."""
    return _typed("samples", _read(file, "samples"))


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
    """Table to its rows; rows of samples are checked and not kept, because there are many."""
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
            rows[table] = read if table != "samples" else read.slice(0, 0)
    damaged |= {file: "missing" for table, file in absent.items() if table in _needed(kind, rows)}
    return Finished(rows, damaged)


def read_case(run_dir: RunDir, case: Case, launch: int = 0) -> Finished:
    """Read all files of a case whose row is there; a row with other options than the configuration's is damaged, too."""
    found = read_finished(run_dir, "cases", case.case_id, launch)
    row = found.rows["cases"].to_pylist()[0] if "cases" in found.rows else case.options
    unlike = "; ".join(f"column {axis}: expected {option}" for axis, option in case.options.items() if row[axis] != option)
    damaged = {run_dir.case_file("cases", case.case_id, launch): unlike} if unlike else {}
    return Finished(found.rows, found.damaged | damaged)


def _needed(kind: str, rows: dict[str, pa.Table]) -> Sequence[str]:
    """Tables in which a file must be there."""
    if kind == "probes":
        return HELD[kind]
    diagnosed = DIAGNOSED if rows.keys() & set(DIAGNOSED) else ()
    return (*MEASURED, *diagnosed) if "cases" in rows and rows["cases"]["status"][0].as_py() == OK else ()


def whole_parts(run_dir: RunDir, probe: str) -> list[str]:
    """Parts of a probe that is not finished of which every table can be read."""
    files = {part: [run_dir.case_file(table, part) for table in HELD["probes"]] for part in run_dir.parts(probe)}
    return [part for part, own in files.items() if all(is_whole(file, probe) for file in own)]


def kept_answers(run_dir: RunDir, probe: str) -> int:
    """Questions of a probe that is not finished whose answers are kept: the run goes on after them."""
    read = [read_rows(run_dir.case_file("probes", part), probe).to_pylist() for part in whole_parts(run_dir, probe)]
    return len({row["subject"] for rows in read for row in rows if row["status"] == OK})


def _read(file: Path, table: str) -> pa.Table:
    """All rows, in the columns that are declared and there, valid by Arrow's own rules."""
    try:
        with open_file(file, folders=1) as opened, pq.ParquetFile(opened) as parquet:
            names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
            there = [column for column in KINDS[table] if column in names or column not in _ADDED.get(table, ())]
            lacking = [column for column in there if names.count(column) != 1]
            if lacking:
                raise NotWholeError(f"no column {lacking[0]}, or several")
            most = _MOST_ROWS.get(table, _MOST_OTHERS)
            if rows > most:
                raise NotWholeError(f"{rows} rows, of which {most} are read at most")
            read = parquet.read(columns=there)
        read.validate(full=True)
        read = read.unify_dictionaries()  # row groups may have their own
    except (OSError, ValueError, TypeError, MemoryError, NotImplementedError, pa.ArrowException) as error:
        raise NotWholeError(reason(error)) from error
    return read.replace_schema_metadata(None)


def _typed(table: str, read: pa.Table) -> pa.Table:
    """Each column as it is declared; texts of samples stay dictionaries, as there are many."""
    columns = {}
    for name in _ADDED.get(table, ()):
        if name not in read.column_names:
            read = read.append_column(name, pa.repeat(pa.scalar(nan), read.num_rows))
    for name in read.column_names:
        column, expected = read[name], KINDS[table][name]
        words, fits, target = _FITTING[expected]
        coded = pa.types.is_dictionary(column.type)
        if not fits(column.type.value_type if coded else column.type):
            raise NotWholeError(f"column {name}: expected {words}, found {str(column.type)[:40]}")
        if column.null_count and expected is not _REAL:
            raise NotWholeError(f"column {name}: {column.null_count} rows without a value")
        try:
            columns[name] = column if coded and table == "samples" else column.cast(target)
            if expected is _REAL:
                columns[name] = columns[name].fill_null(nan)  # pandas writes one for the other
        except pa.ArrowException as error:
            raise NotWholeError(f"column {name}: {reason(error)}") from error
        _check_values(table, name, columns[name])
    return pa.table(columns)


def _check_finite(name: str, column: pa.ChunkedArray) -> None:
    if not pc.all(pc.is_finite(column)).as_py():
        raise NotWholeError(f"column {name}: expected finite seconds")


def _check_reading(name: str, column: pa.ChunkedArray) -> None:
    """Raise NotWholeError for what no sampler writes; NaN stands for a missing reading."""
    values = column.to_numpy()
    known, most = values[~np.isnan(values)], 1.0 if name in _SHARES else _LARGEST_READING
    if ((known < 0) | (known > most)).any():
        raise NotWholeError(f"column {name}: expected numbers from 0 to {most:g}, or NaN")


_SHARES = ("slowed_by_power", "slowed_by_heat")
_LARGEST_READING = 1e15
"""MHz, W, degrees Celsius, percent or bytes."""


def _check_values(table: str, name: str, column: pa.ChunkedArray) -> None:
    if not len(column):
        return
    if pa.types.is_string(column.type) and pc.max(pc.binary_length(column)).as_py() > LONGEST:
        raise NotWholeError(f"column {name}: a text of more than {LONGEST} bytes")
    if name in _SECONDS and table != "samples":
        _check_finite(name, column)
    if table == "devices" and pa.types.is_floating(column.type):
        _check_reading(name, column)
    if name in _COUNTS and pa.types.is_integer(column.type) and pc.min(column).as_py() < 0:
        raise NotWholeError(f"column {name}: expected numbers of at least 0")


def _check_owner(table: str, rows: pa.Table, name: str, launch: int) -> None:
    """Raise NotWholeError for rows of another case, probe or launch.

    After a resume the file may also contain rows of a later case that was compared with this one. A file that marks a case or
    probe as finished may not be empty.
    """
    owners = _different(rows, "case_id" if "case_id" in rows.column_names else "probe")
    if "against" in rows.column_names:
        own = rows.filter(pc.not_equal(rows["against"], f"{CASE}{name}"))
        owners = _different(own, "case_id")
    if owners - {name} or (table in HELD and not rows.num_rows):
        raise NotWholeError(f"expected rows of {name}")
    if "launch" in rows.column_names and _different(rows, "launch") - {launch}:
        raise NotWholeError(f"expected rows of launch {launch}")


def _check_key(table: str, rows: pa.Table) -> None:
    key = KEYS.get(table, [])
    if key and rows.select(key).group_by(key).aggregate([]).num_rows < rows.num_rows:
        raise NotWholeError(f"several rows of the same {', '.join(key)}")


def _different(rows: pa.Table, column: str) -> set[Any]:
    return set(rows[column].unique().to_pylist())


def _check_case(rows: pa.Table) -> None:
    if rows.num_rows != 1:
        raise NotWholeError(f"expected one row, found {rows.num_rows}")
    _check_status(rows)


def _check_status(rows: pa.Table) -> None:
    unknown = _different(rows, "status") - {OK, SKIPPED, FAILED}
    if unknown:
        raise NotWholeError(f"column status: expected {OK}, {SKIPPED} or {FAILED}")


def _check_samples(rows: pa.Table) -> None:
    """Check that each rank, iteration, phase and clock has one row, that steps were measured, and that durations are >= 0.

    Durations of the clock cuda_queued are NaN in warm-ups, and where a hold ended early.
    """
    rank, iteration = (rows[name].to_numpy().astype(np.int64) for name in ("rank", "iteration"))
    (phase, phases), (clock, clocks) = _codes(rows["phase"]), _codes(rows["clock"])
    if len(rank) and (rank.min() < 0 or max(rank.max(), iteration.max()) >= _MOST_PLACES):
        raise NotWholeError("column rank, or iteration: expected whole numbers of at least 0")
    kind = clock * len(phases) + phase
    if len(phases) * len(clocks) > _MOST_KINDS:
        raise NotWholeError(f"more than {_MOST_KINDS} phases and clocks")
    kinds = _count(kind)
    expected = kinds * _count(rank) * _count(iteration)
    if rows.num_rows != expected or _count((rank * _MOST_PLACES + iteration) * _MOST_KINDS + kind) != expected:
        raise NotWholeError(f"expected one row a rank, iteration, phase and clock: {expected}; found {rows.num_rows}")
    measured = {(phases[k % len(phases)], clocks[k // len(phases)]) for k in np.unique(kind[~_flags(rows)]).tolist()}
    if not {("step", "host"), ("step", "cuda_event")} & measured:
        raise NotWholeError("no measured step")
    seconds = rows["seconds"].to_numpy()
    may_lack = np.isin(clock, [place for place, name in enumerate(clocks) if name == CUDA_QUEUED])
    _check_finite("seconds", pa.chunked_array([seconds[~(may_lack & np.isnan(seconds))]]))
    if np.fmin.reduce(seconds[clock != (clocks.index("arrival") if "arrival" in clocks else -1)], initial=0.0) < 0:
        raise NotWholeError("column seconds: expected numbers of at least 0")


_MOST_PLACES = 2**20
"""Ranks of a world, and iterations of a case."""
_MOST_KINDS = 2**10
"""Phases times clocks."""


def _flags(rows: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(rows["warm_up"].to_numpy(), dtype=np.bool_)


def _count(values: NDArray[np.int64]) -> int:
    """Number of different values."""
    return int(pc.count_distinct(pa.array(values)).as_py())


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return the index of each row's text, and the texts."""
    coded = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()


def _check_timed(rows: pa.Table) -> None:
    if rows.num_rows and pc.min(rows["seconds"]).as_py() <= 0:
        raise NotWholeError("column seconds: expected numbers above 0")


def _check_discrepancies(rows: pa.Table) -> None:
    whole = pc.and_(pc.equal(rows["against"], REFERENCE), pc.equal(rows["parameter"], ""))
    if not pc.any(whole).as_py():
        raise NotWholeError("no distance from the reference")


_CHECKS: dict[str, tuple[Callable[[pa.Table], None], ...]] = {
    "cases": (_check_case,),
    "probes": (_check_status,),
    "samples": (_check_samples,),
    "discrepancies": (_check_discrepancies,),
    "collectives": (_check_timed,),
}
