"""A file of a table is read as it is declared, or named with the reason for which it is not."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.schema.case import Case
from harness.schema.reading import NotWholeError
from harness.schema.run_dir import RunDir
from harness.schema.tables import _check_values, read_finished, read_rows, why_not_whole
from tests.synthetic import make_run


def phases(case: Case, launch: int) -> Mapping[tuple[str, str], np.ndarray]:
    """Samples as ranks write them: not every phase has every clock, and a hold may have ended early."""
    whole = {key: np.ones((3, 2)) for key in (("host", "step"), ("host", "aggregate"), ("arrival", "aggregate"))}
    return whole | {("cuda_queued", "step"): np.array([[np.nan] * 2, [1.0] * 2, [1.0] * 2])}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("tables"), phases, "workload=[mlp_digits]", "reduction=[sum]")


def changed(column: str, change: Callable[[list[object]], list[object]], kind: pa.DataType | None = None) -> object:
    def apply(table: pa.Table) -> pa.Table:
        values = pa.array(change(table[column].to_pylist()), kind)
        return table.set_column(table.column_names.index(column), column, values)

    return apply


def first(value: object) -> Callable[[list[object]], list[object]]:
    return lambda values: [value, *values[1:]]


def last_held(value: float) -> Callable[[list[object]], list[object]]:
    """Change the last row, which is of the clock cuda_queued."""
    return lambda values: [*values[:-1], value]


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("samples", lambda rows: rows.drop_columns(["rank"]), "no column rank"),
        ("samples", lambda rows: rows.append_column("rank", rows["rank"]), "no column rank, or several"),
        ("samples", changed("seconds", first(float("nan"))), "column seconds: expected finite seconds"),
        ("samples", changed("seconds", first(float("inf"))), "column seconds: expected finite seconds"),
        ("samples", changed("seconds", lambda values: [-1.0] * len(values)), "column seconds: expected numbers of at least 0"),
        ("samples", changed("seconds", lambda values: [str(value) for value in values]), "expected numbers, found string"),
        ("samples", changed("seconds", last_held(float("inf"))), "column seconds: expected finite seconds"),
        ("samples", changed("seconds", last_held(-1.0)), "column seconds: expected numbers of at least 0"),
        ("samples", changed("rank", first(None)), "column rank: 1 rows without a value"),
        ("samples", changed("case_id", first("x/../../PWNED")), "expected rows of"),
        ("samples", changed("launch", first(3)), "expected rows of launch 0"),
        ("samples", changed("warm_up", lambda values: [True] * len(values)), "no measured step"),
        ("samples", lambda rows: rows.slice(1), "expected one row a rank, iteration, phase and clock"),
        ("samples", lambda rows: pa.concat_tables([rows, rows]), "expected one row a rank, iteration, phase and clock"),
        ("discrepancies", lambda rows: pa.concat_tables([rows, rows]), "several rows of the same case_id, rank"),
        ("discrepancies", lambda rows: rows.slice(0, 0), "no row with against 'reference', parameter ''"),
        ("cases", changed("status", first("fine")), "column status: expected ok, skipped or failed"),
        ("cases", changed("reason", first("x" * 2**19)), "column reason: a text of more than 262144 bytes"),
        ("cases", changed("wall_s", first(float("nan"))), "column wall_s: expected finite seconds"),
        ("cases", lambda rows: rows.slice(0, 0), "expected rows of"),
    ],
)
def test_what_no_rank_writes_is_not_whole(
    table: str, change: Callable[[pa.Table], pa.Table], words: str, whole: RunDir, tmp_path: Path
) -> None:
    (case,) = whole.listed()
    file = whole.case_file(table, case)
    assert why_not_whole(file, case) == ""
    (tmp_path / table).mkdir()
    pq.write_table(change(pq.read_table(file)), tmp_path / table / file.name)
    assert words in why_not_whole(tmp_path / table / file.name, case)


def test_null_is_the_number_that_is_none(whole: RunDir, tmp_path: Path) -> None:
    """Pandas writes null for NaN."""
    (case,) = whole.listed()
    file = tmp_path / "cases" / "case.parquet"
    file.parent.mkdir()
    rows = pq.read_table(whole.case_file("cases", case)).to_pandas()
    rows.to_parquet(file)
    (value,) = read_rows(file, case)["predicted_max_abs"].to_pylist()
    assert value != value


def test_a_measured_case_without_one_of_its_files_is_damaged(whole: RunDir) -> None:
    (case,) = whole.listed()
    assert not read_finished(whole, "cases", case).damaged
    memory = whole.case_file("memory", case)
    kept = memory.read_bytes()
    memory.unlink()
    assert read_finished(whole, "cases", case).damaged == {memory: "missing"}
    memory.write_bytes(kept)


@pytest.mark.parametrize(
    ("column", "value"),
    [("sm_mhz_median", -1.0), ("power_w_max", float("inf")), ("process_bytes", 1e300), ("slowed_by_heat", 1.1)],
)
def test_readings_that_no_sampler_writes_are_refused(column: str, value: float) -> None:
    _check_values("devices", column, pa.chunked_array([[0.5, float("nan")]]))
    with pytest.raises(NotWholeError, match=f"column {column}: expected numbers from 0 to"):
        _check_values("devices", column, pa.chunked_array([[0.5, value]]))
