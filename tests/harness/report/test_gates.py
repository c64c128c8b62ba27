"""Gates: what breaks them, what cannot be told, and what is left for machines to read."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.report.__main__ import main
from harness.report.across import across
from harness.report.discrepancy import discrepancy
from harness.report.export.content import contents
from harness.report.frame import load_run
from harness.report.gates import BROKEN, KEPT, UNTOLD, outcome, parse_gate
from harness.report.render import build
from harness.report.sides import DISCREPANCY, load_side
from harness.report.text import number
from harness.schema.matrix import expand_cases
from harness.schema.record import REFERENCE
from harness.schema.refusal import RefusedError
from tests.synthetic import MIB, make_run, read_json, steps

CASES = ("workload=[mlp_digits]", "reduction=[mean,sum]", "launches=5")
FIVE = [0.0100, 0.0101, 0.0099, 0.0102, 0.0098]
Column = Callable[[Any, int], Any]


def made(folder: Path, factor: float = 1.0, *overrides: str, **outcome: Column) -> Path:
    return make_run(folder, steps([factor * seconds for seconds in FIVE]), *CASES, *overrides, **outcome).path


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [("time=5%", "time", 1.05), ("relative_l2=2x", "relative_l2", 2.0), ("time.skew=1e2%", "time.skew", 2.0)],
)
def test_a_gate(text: str, metric: str, limit: float) -> None:
    gate = parse_gate(text)
    assert (gate.metric, gate.limit) == (metric, pytest.approx(limit))


@pytest.mark.parametrize(
    "text",
    [
        "time",
        "time=",
        "time=5",
        "time=-5%",
        "time=five%",
        "time=0%",
        "time=0.5x",
        "colour=5%",
        "memory.x=5%",
        "time=1.2.3x",
        "",
    ],
)
def test_a_bad_gate_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="--gate"):
        parse_gate(text)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.06, 1.2, BROKEN), (0.9, 1.05, KEPT), (1.0, 1.2, UNTOLD), (float("nan"), float("nan"), UNTOLD)]
)
def test_a_gate_is_broken_by_the_whole_interval(low: float, high: float, said: str) -> None:
    assert outcome(low, high, 1.05) == said


def test_a_broken_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = made(tmp_path), made(tmp_path, 1.3)
    asked = ["compare", str(base), str(new), "--gate", "time=5%", "--gate", "relative_l2=2x", "--gate", "memory=10%"]
    assert main(asked) == 1
    assert "Gates: 2 broken, 4 kept, 0 cannot tell." in capsys.readouterr().out
    told = read_json(new / "report" / "compare.json")
    assert (told["status"], told["gates"]) == (1, {BROKEN: 2, KEPT: 4, UNTOLD: 0})
    suites = ElementTree.parse(new / "report" / "compare.xml").getroot()
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("time=5%", "2", "2"),
        ("relative_l2=2x", "2", "0"),
        ("memory=10%", "2", "0"),
    ]


def test_a_kept_gate_and_files_elsewhere(tmp_path: Path) -> None:
    base, new = made(tmp_path), made(tmp_path)
    files = {"--json": tmp_path / "a.json", "--junit": tmp_path / "a.xml"}
    options = [text for option, path in files.items() for text in (option, str(path))]
    assert main(["compare", str(base), str(new), "--gate", "time=10%", *options]) == 0
    assert read_json(files["--json"])["gates"][KEPT] == 2
    assert ElementTree.parse(files["--junit"]).getroot()[0].get("failures") == "0"


def test_what_cannot_be_told_is_said_and_breaks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = made(tmp_path), made(tmp_path)
    assert main(["compare", str(base), str(new), "--gate", "time=1%"]) == 0
    assert "Gates: 0 broken, 0 kept, 2 cannot tell." in capsys.readouterr().out
    suites = ElementTree.parse(new / "report" / "compare.xml").getroot()
    assert [suites[0].get("skipped"), len(suites.findall(".//skipped"))] == ["2", 2]


def test_a_case_that_the_new_run_failed_breaks_every_gate(tmp_path: Path) -> None:
    base = made(tmp_path)
    new = made(tmp_path, status=lambda case, launch: "failed" if (case.reduction, launch) == ("sum", 3) else "ok")
    assert main(["compare", str(base), str(new)]) == 0
    assert main(["compare", str(base), str(new), "--gate", "relative_l2=2x"]) == 1
    judged = read_json(new / "report" / "compare.json")["judged"]
    assert [(one["case"], one["why"]) for one in judged if one["outcome"] == BROKEN] == [
        ("mlp_digits sum", "measured in base, not in new")
    ]


def test_a_gate_on_a_phase(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, new = made(tmp_path), made(tmp_path, 1.3)
    assert main(["compare", str(base), str(new), "--gate", "time.aggregate=10%"]) == 1
    assert main(["compare", str(base), str(new), "--gate", "time.exposed=10%"]) == 2
    assert "time.exposed was not measured on both sides, but" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        *((["--max-relative-l2", "1e-5"], 0), (["--max-relative-l2", "1e-8"], 1), (["--max-step-ms", "20"], 0)),
        *((["--max-step-ms", "5"], 1), (["--max-memory-mib", "100"], 0), (["--max-memory-mib", "99"], 1)),
        *((["--max-relative-l2", "0"], 1), (["--max-step-ms", "10"], 0)),
    ],
)
def test_check(tmp_path: Path, limits: list[str], status: int) -> None:
    run = made(tmp_path)
    assert main(["check", str(run), *limits]) == status
    told = read_json(run / "report" / "check.json")
    assert told["status"] == status
    assert sum(told["gates"].values()) == 2
    assert ElementTree.parse(run / "report" / "check.xml").getroot()[0].get("tests") == "2"


def test_check_takes_the_worst_launch(tmp_path: Path) -> None:
    worst = made(tmp_path, relative_l2=lambda case, launch: 1e-3 if launch == 4 else 1e-8)
    assert main(["check", str(worst), "--max-relative-l2", "1e-5"]) == 1
    none = made(tmp_path, relative_l2=lambda case, launch: float("nan") if launch == 4 else 1e-8)
    assert main(["check", str(none), "--max-relative-l2", "1e-5"]) == 1
    fat = made(tmp_path, peak_memory_bytes=lambda case, launch: (100 + launch) * MIB)
    assert main(["check", str(fat), "--max-memory-mib", "103"]) == 1


def test_check_misses_nothing(tmp_path: Path) -> None:
    failed = made(tmp_path, status=lambda case, launch: "failed" if case.reduction == "sum" else "ok")
    assert main(["check", str(failed), "--max-relative-l2", "1e-5"]) == 1
    cut_short = made(tmp_path)
    next((cut_short / "cases").glob("*.launch4.parquet")).unlink()
    assert main(["check", str(cut_short), "--max-relative-l2", "1e-5"]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            ([], "no limit given"),
            (["--max-relative-l2", "small"], "expected a number"),
            (["--max-step-ms", "-1"], "expected a number"),
        ),
        *((["--max-step-ms", "nan"], "expected a number"), (["--max-memory-mib", "inf"], "expected a number")),
        (["--max-step-ms", "50", "--json", "/proc/none/a.json"], "cannot write"),
    ],
)
def test_wrong_use_of_check(tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(made(tmp_path)), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none"), "--max-step-ms", "5"]) == 2
    assert "not a run directory" in capsys.readouterr().err


def far_on_one_rank(folder: Path, ranks: int) -> Path:
    """Two launches. `sum` has NaN on rank 1 of the first one, `mean` is furthest on rank 1 of the second one."""
    run_dir = make_run(
        folder, steps(0.01, ranks=ranks), "workload=[mlp_digits]", "reduction=[mean,sum]", "launches=2", ranks=ranks
    )
    for case in expand_cases(run_dir.config()):
        for launch, distance in enumerate((math.nan, 1e-8) if case.reduction == "sum" else (1e-8, 5e-3)):
            file = run_dir.case_file("discrepancies", case.case_id, launch)
            rows = pq.read_table(file).to_pylist()
            reference = next(row for row in rows if row["against"] == REFERENCE)
            pq.write_table(pa.Table.from_pylist([*rows, reference | {"rank": 1, "relative_l2": distance}]), file)
    return run_dir.path


def test_every_command_has_one_distance_of_the_furthest_rank(tmp_path: Path) -> None:
    """NaN on one rank of one launch is infinitely far in the report, `check`, `compare`, across runs, and in an export."""
    two, four = far_on_one_rank(tmp_path, 2), far_on_one_rank(tmp_path, 4)
    run, far = load_run(four), {"mean": 5e-3, "sum": math.inf}
    assert discrepancy(run).query("against == @REFERENCE").set_index("reduction").relative_l2.to_dict() == far
    assert "mlp_digits sum has no finite distance from it" in build(four).answer[0]
    assert main(["check", str(four), "--max-relative-l2", "1e-3"]) == 1
    judged = {one["case"]: one["why"] for one in read_json(four / "report" / "check.json")["judged"]}
    assert judged == {f"mlp_digits {name}": number(value) for name, value in far.items()}
    table = across([load_run(two), run])
    assert list(zip(table.reduction, table[REFERENCE], strict=True)) == [(name, far[name]) for name in far for _ in range(2)]
    sides = {key: load_side([four]).launches(key)[DISCREPANCY] for key in load_side([four]).keys}
    assert {dict(key)["reduction"]: max(values) for key, values in sides.items()} == far
    exported = {(one.case_id.split(".")[1], one.launch): one.figures["relative_l2/reference"] for one in contents(run)}
    assert exported == {("mean", 0): 1e-7, ("mean", 1): 5e-3, ("sum", 0): math.inf, ("sum", 1): 1e-7}
