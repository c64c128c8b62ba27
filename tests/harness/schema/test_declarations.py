"""One declaration a table: schemas, parameter columns, frames, documentation, and what files of other versions hold."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.rank.writer import Writer
from harness.report.__main__ import main
from harness.report.frame import load_run
from harness.schema.arrow import parameter_values, parameters_of, schema_of
from harness.schema.case import Case
from harness.schema.declare import CASES, OPTIONAL, TABLES, Column, column, columns_of, table
from harness.schema.matrix import expand_cases
from harness.schema.reading import NotWholeError
from harness.schema.record import OK, SCHEMA_VERSION, Asked, Observation
from harness.schema.refusal import RefusedError
from harness.schema.tables import _read, _typed
from launch.compose import compose_config
from launch.resume import configure_resume
from tests import run_directory
from tests.conftest import Measure
from tests.same_tables import assert_tables_equal
from tests.synthetic import make_run, steps, write_case

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
V4 = DATA / "run_v4"
ARROW = {
    **{str(kind): kind for kind in (pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_())},
    str(pa.dictionary(pa.int32(), pa.string())): pa.dictionary(pa.int32(), pa.string()),
}
SMALL = ("workload=[mlp_digits]", "reduction=[sum]", "global_batch_size=8")


def case(**parameters: object) -> Case:
    return Case(*"abcdefg", nodes={"reduction": parameters})


def test_the_page_has_the_declared_columns() -> None:
    text = run_directory.PAGE.read_text()
    assert text == run_directory.page(text), "try python -m tests.run_directory"


@pytest.mark.parametrize(
    ("values", "kind", "stored"),
    [
        ([True, False], bool, [True, False]),
        ([2, 3], int, [2, 3]),
        ([2, 0.5], float, [2.0, 0.5]),
        (["a", "b"], str, ["a", "b"]),
        ([None, 2], int, [None, 2]),
        ([None, None], str, [None, None]),
        ([2, "64M"], str, ["2", "64M"]),
        ([True, 2], str, ["true", "2"]),
        ([2**63, 1], str, [str(2**63), "1"]),
        ([-(2**63), 1], int, [-(2**63), 1]),
        ([2**70, 0.5], str, [str(2**70), "0.5"]),
    ],
)
def test_a_parameter_column_has_one_type(values: list[Any], kind: type, stored: list[Any]) -> None:
    cases = [case(x=value) for value in values] + [case(y=1)]
    parameters = parameters_of(cases)
    assert parameters == {"reduction.b.x": kind, "reduction.b.y": int}
    written = [parameter_values(one, parameters)["reduction.b.x"] for one in cases]
    assert written == [*stored, None]
    assert pa.array(written, schema_of(CASES, parameters).field("reduction.b.x").type).to_pylist() == written


@pytest.mark.parametrize(
    "swept",
    [
        ("workload.mlp_digits.samples=[null,64]",),
        ("aggregation=[all_reduce,bucketed]", "aggregation.bucketed.bytes=[65536,1048576]", "launches=2"),
        ("reduction=[sum,micro_batch]", "reduction.micro_batch.size=[2,8]", "clip=[none,by_norm]"),
    ],
)
def test_pandas_reads_the_tables_that_load_run_gives(swept: tuple[str, ...], tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps([0.01, 0.01], iterations=3), *SMALL, *swept)
    assert_tables_equal(run_dir.path)
    cases = pd.read_parquet(run_dir.path / "cases")
    assert list(cases.reduction.cat.categories) == list(run_dir.config().reduction)


@pytest.mark.full
def test_pandas_reads_the_tables_of_a_measured_sweep(measure: Measure) -> None:
    swept = ("aggregation=[bucketed]", "aggregation.bucketed.bytes=[65536,1048576]", "workload.mlp_digits.samples=[null,64]")
    run = measure(*SMALL, *swept, "iterations=1", "warm_up=0", "diagnose=true", "drift.steps=1")
    assert_tables_equal(run.path, run)
    read = pd.read_parquet(run.path / "cases")
    assert sorted(read[next(name for name in read if name.endswith(".samples"))].fillna(0)) == [0, 0, 64, 64]


@pytest.mark.full
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_pandas_reads_the_tables_of_every_experiment(name: str, tmp_path: Path) -> None:
    few = ("launches=1", "probe=[]")
    assert_tables_equal(make_run(tmp_path, steps(0.01, iterations=2), f"experiment={name}", *few).path)


def test_an_unknown_table_is_no_attribute(tmp_path: Path) -> None:
    run = load_run(V4)
    assert len(run.memory) == 4 and run.memory is run.frame("memory")
    with pytest.raises(AttributeError, match=r"no table, 'memories'; tables: cases, samples, memory"):
        run.memories  # noqa: B018
    assert not hasattr(run, "frameses")


def test_schemas_of_version_4_are_read(tmp_path: Path) -> None:
    """Each table as the stored golden file of version 4 has it, without rows."""
    for name, columns in json.loads((Path(__file__).parent / "golden_v4.json").read_text()).items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / "x.parquet"
        pq.write_table(pa.schema([(column, ARROW[kind]) for column, kind in columns.items()]).empty_table(), file)
        assert _typed(TABLES[name], _read(file, TABLES[name])).schema == schema_of(name)


def test_a_run_of_version_4_is_read() -> None:
    run = load_run(V4)
    assert (run.damaged, run.missing) == ({}, ())
    before = {name: pd.read_parquet(V4 / name) for name in ("cases", "memory", "weights", "budget", "diagnoses")}
    for name, renamed in {
        "cases": {"above_bare_bytes": "above_baseline_bytes", "stopped": "stop_reason"},
        "memory": {"above_bare_bytes": "above_baseline_bytes"},
        "weights": {"should": "expected"},
        "budget": {"step": "stage"},
        "diagnoses": {"orders": "summation_orders"},
    }.items():
        for old, new in renamed.items():
            assert sorted(run.every(name)[new].astype(str)) == sorted(before[name][old].astype(str))
    assert sorted(run.cases["reduction.micro_batch.size"].dropna()) == [4]
    assert len(run.samples) == len(pd.read_parquet(V4 / "samples"))


def test_a_sweep_of_version_4_is_read() -> None:
    """Its files of `cases` have unequal types of a parameter."""
    run = load_run(DATA / "run_v4_sweep")
    assert (run.damaged, run.missing) == ({}, ())
    assert sorted(run.launched["workload.mlp_digits.samples"].fillna(0)) == [0, 0, 64, 64]


def test_a_run_of_version_4_is_shown_and_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for copy in ("a", "b"):
        shutil.copytree(V4, tmp_path / copy)
    assert main(["show", str(tmp_path / "a")]) == 0
    assert main(["check", str(tmp_path / "a"), "--max-step-ms", "1e9"]) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    capsys.readouterr()
    with pytest.raises(RefusedError, match=r"schema_version 4, which is read but not written; accepted: .* try a new run$"):
        configure_resume([f"resume={tmp_path / 'a'}", "accept_changes=true"])


NEWER = "try a newer version of reducebench"


@pytest.mark.parametrize(("version", "words"), [(SCHEMA_VERSION + 1, NEWER), (3, "see CHANGELOG")])
def test_another_version_is_refused_in_a_line(
    version: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), *SMALL)
    run_dir.write_environment({"schema_version": version})
    assert main(["show", str(run_dir.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"is of schema_version {version}, and this version reads 4 and 5: {words}")


@dataclass(frozen=True)
class Later:
    """A row with columns that were added later."""

    name: Annotated[str, column("Name.")]
    added: Annotated[int, column("Added later.", since="9.9")] = 7
    other: Annotated[float, column("Added later.", since="9.9", formerly="another")] = float("nan")


def test_columns_that_were_added_later_have_defaults_and_unknown_ones_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.schema.declare._declared", declared := dict(TABLES))
    table("later", of=CASES, a_row="test", needed=OPTIONAL)(Later)
    for module in ("harness.schema.arrow", "harness.schema.tables"):
        monkeypatch.setattr(f"{module}.TABLES", declared)
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"name": ["a", "b"], "unknown": [1, 2]}), file)
    read = _typed(declared["later"], _read(file, declared["later"]))
    assert read.select(["name", "added"]).to_pydict() == {"name": ["a", "b"], "added": [7, 7]}
    assert np.isnan(read["other"].to_numpy()).all()
    pq.write_table(pa.table({"added": [1, 2]}), file)
    with pytest.raises(NotWholeError, match="no column name"):
        _read(file, declared["later"])


def test_a_column_without_a_declaration_is_refused() -> None:
    @dataclass(frozen=True)
    class Bare:
        name: str

    with pytest.raises(TypeError, match=r"Bare\.name: expected Annotated"):
        columns_of(Bare)

    @dataclass(frozen=True)
    class Late:
        name: Annotated[str, Column("Name.", since="9.9")]

    with pytest.raises(TypeError, match=r"Late\.name: a column that was added later needs a default"):
        columns_of(Late)


def test_a_run_of_which_a_table_is_younger_is_whole(tmp_path: Path) -> None:
    """Its folder is missing."""
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), *SMALL)
    (run_dir.path / "devices").rmdir()
    assert load_run(run_dir.path).damaged == {}
    assert load_run(run_dir.path).missing == ()


def test_a_run_that_goes_on_with_other_parameters_has_equal_files(tmp_path: Path) -> None:
    """`samples` is null everywhere at first, and a column of texts; then it is a column of numbers."""
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), *SMALL)
    config = compose_config([*SMALL, "workload.mlp_digits.samples=[null,64]", "iterations=3"], nproc_per_node=2)
    run_dir.write_config(config)
    Writer(run_dir).renew_files()
    kept, added = expand_cases(config)
    write_case(run_dir, config, added, 0, steps(0.01, iterations=3)(added, 0))
    assert_tables_equal(run_dir.path)
    assert pd.read_parquet(run_dir.path / "cases").set_index("case_id").loc[kept.case_id, "status"] == "ok"


def test_a_run_that_goes_on_under_another_version_has_equal_files(tmp_path: Path) -> None:
    """Files of one case are as another version wrote them, with an additional column or without one; others are not touched."""
    asked = ("workload=[mlp_digits]", "global_batch_size=8", "reduction=[sum,mean,none]", "launches=2")
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), *asked)
    later, _, damaged = (case.case_id for case in expand_cases(run_dir.config()))
    files = {table: run_dir.case_file(table, later, 1) for table in TABLES if run_dir.case_file(table, later, 1).exists()}
    assert {"cases", "samples", "discrepancies"} <= files.keys()
    for name, file in files.items():
        rows = pq.ParquetFile(file).read()
        rows = rows.append_column("later", pa.nulls(len(rows), pa.int64()))
        pq.write_table(rows.drop_columns("loss") if name == "cases" else rows, file)
    run_dir.case_file("memory", damaged).write_bytes(b"PAR1")
    file = run_dir.case_file("cases", damaged, 1)  # with the option of another case, and without a column
    shutil.copy(run_dir.case_file("cases", later, 0), file)
    rows = pq.ParquetFile(file).read().drop_columns("loss")
    place = rows.column_names.index("case_id")
    rows = rows.set_column(place, "case_id", pa.array([damaged])).set_column(
        rows.column_names.index("launch"), "launch", pa.array([1])
    )
    pq.write_table(rows, file)
    before = {file: file.stat().st_mtime_ns for file in run_dir.path.glob("*/*.parquet") if file not in files.values()}
    Writer(run_dir).renew_files()
    assert before == {file: file.stat().st_mtime_ns for file in before}
    for case, launch in ((damaged, 0), (damaged, 1)):
        run_dir.forget("cases", case, launch)
    assert_tables_equal(run_dir.path)


def test_the_files_of_a_probe_are_written_again_likewise(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), *SMALL, "probe=[summation_order]")
    answer = Observation("here", "trees", 1.0)
    Writer(run_dir).write_probe("summation_order", [Asked("summation_order", "all_reduce", OK)], [("all_reduce", 0, answer)])
    file = run_dir.case_file("observations", "summation_order")
    rows = pq.ParquetFile(file).read()
    pq.write_table(rows.append_column("later", pa.nulls(len(rows), pa.int64())), file)
    Writer(run_dir).renew_files()
    assert pq.ParquetFile(file).read().equals(rows)
