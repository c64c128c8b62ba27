"""Golden raw rows in, tables out."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from harness.rank.writer import Writer
from harness.report.__main__ import main
from harness.report.caution import cautions, short
from harness.report.cost import cost, cost_table
from harness.report.frame import load_run
from harness.report.pairwise import pairwise
from harness.report.render import build, show, write
from harness.report.tables import Table, escape
from harness.report.text import milliseconds, number
from harness.report.timing import timing
from harness.schema.case import Case
from harness.schema.matrix import expand_cases
from harness.schema.record import (
    CASE,
    FAILED,
    FULL_BATCH,
    METRICS,
    RANK_0,
    REFERENCE,
    SKIPPED,
    Discrepancy,
    Finding,
    Memory,
    Outcome,
)
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.harness.schema.test_schema import NOW
from tests.synthetic import make_run, steps

ZERO = dict.fromkeys(METRICS, 0.0) | {"bitwise_equal": 1.0, "cosine": 1.0, "scale": 1.0}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """On two ranks: `sum` measured, `mean` measured with a difference, `none` skipped, `one_by_one` missing."""
    overrides = ["workload=[mlp_digits]", "reduction=[sum,mean,none,one_by_one]", f"results_dir={tmp_path}"]
    config = compose_config(overrides, nproc_per_node=2)
    run_dir = RunDir.create(config, NOW)
    sums, mean, none, _ = expand_cases(config)
    writer = Writer(run_dir)
    for case, scale in ((sums, 1.0), (mean, 2.0)):
        write_measured(writer, case, scale)
    apart = Discrepancy.of(
        mean.case_id, 0, f"{CASE}{sums.case_id}", "", metrics(max_abs=0.25, relative_l2=0.125, bitwise_equal=0.0)
    )
    writer.write("discrepancies", mean.case_id, [*compared(mean, 3e-8), apart])
    writer.write("discrepancies", sums.case_id, compared(sums, 0.0))
    writer.write("findings", mean.case_id, [Finding(mean.case_id, "test", "a <b>finding</b> | here", 1.0)])
    writer.write_outcome(none, Outcome(case_id=none.case_id, status=SKIPPED, reason="not today"))
    return run_dir


def write_measured(writer: Writer, case: Case, scale: float) -> None:
    """Rank 1 is the slow one in iteration 1, rank 0 in the others; iteration 0 is a warm-up."""
    rank_0 = torch.tensor([[9.0, 90.0], [1.0, 10.0], [3.0, 30.0], [5.0, 50.0]], dtype=torch.float64) * scale
    rank_1 = torch.tensor([[9.0, 90.0], [2.0, 20.0], [1.0, 10.0], [1.0, 10.0]], dtype=torch.float64) * scale
    writer.write_samples(case, [("forward", "host"), ("step", "host")], [rank_0 / 1000, rank_1 / 1000], visits=[(1, 3)])
    write_beside(writer, case)
    writer.write_outcome(case, Outcome(case_id=case.case_id, status="ok", peak_memory_bytes=2**21))


def write_beside(writer: Writer, case: Case) -> None:
    """Other tables of a measured case."""
    writer.write("memory", case.case_id, [Memory(case.case_id, rank, 0, 0, 0) for rank in range(2)])
    writer.write("findings", case.case_id, [])


def compared(case: Case, relative: float) -> list[Discrepancy]:
    return [
        Discrepancy.of(case.case_id, 0, REFERENCE, "", metrics(relative_l2=relative, l2=relative)),
        Discrepancy.of(case.case_id, 0, REFERENCE, "w", metrics(l2=relative)),
        Discrepancy.of(case.case_id, 0, FULL_BATCH, "", metrics(relative_l2=0.5)),
        Discrepancy.of(case.case_id, 1, RANK_0, "", metrics()),
    ]


def metrics(**changed: float) -> tuple[float, ...]:
    return tuple((ZERO | changed).values())


def test_a_phase_takes_as_long_as_its_slowest_rank(run_dir: RunDir) -> None:
    run = load_run(run_dir.path)
    timed = timing(run)
    costs = cost(run, timed)
    row = costs.loc[costs.reduction == "sum"].iloc[0]
    slowest = [0.020, 0.030, 0.050]
    assert row["host.step.median"] == 0.030
    assert row["host.step.iqr"] == pytest.approx(np.quantile(slowest, 0.75) - np.quantile(slowest, 0.25))
    assert row["host.step.p95"] == pytest.approx(np.quantile(slowest, 0.95))
    assert row["host.forward.median"] == 0.003
    doubts = short(cautions(run, timed))
    table = cost_table(costs, doubts)
    assert table["step, ms"].str.split(" ").str[0].tolist() == ["30.0", "60.0"]
    assert table[["IQR, ms", "p95, ms", "min, ms", "outliers"]].to_numpy().tolist() == [
        ["15.0", "48.0", "20.0", "0"],
        ["30.0", "96.0", "40.0", "0"],
    ]
    assert table.caution.tolist() == ["few iterations 3; spread 50%"] * 2
    assert cost_table(costs, doubts, brief=True)["step, ms"].tolist() == ["30.0", "60.0"]


def test_what_is_missing_is_said(run_dir: RunDir) -> None:
    run = load_run(run_dir.path)
    assert run.cases.status.tolist() == ["ok", "ok", "skipped"]
    assert [case_id.split(".")[1] for case_id in run.missing] == ["one_by_one"]
    assert str(run.cases.reduction.dtype) == "category"
    report = build(run_dir.path)
    rows = report.tables[-1].rows
    assert rows.status.tolist() == ["skipped", "missing"]
    assert rows.reason.tolist() == ["not today", "the run ended before it"]
    assert report.failed


@pytest.mark.parametrize(
    ("restarts", "note"), [(0, "restarts=0: the run ends with the first."), (3, "until 3 (restarts) in a row")]
)
def test_a_case_in_which_the_run_ended_is_told_from_one_after_it(run_dir: RunDir, restarts: int, note: str) -> None:
    (missing,) = load_run(run_dir.path).missing
    run_dir.write_config(replace(run_dir.config(), restarts=restarts))
    run_dir.note_failure({"at": "now", "launch": 0, "culprits": [{"rank": 1, "case": missing}]})
    report = build(run_dir.path)
    assert report.tables[-1].rows.reason.tolist() == ["not today", "the run ended in it"]
    assert note in next(table.note for table in report.tables if table.title == "Ended early")


def test_the_pages(run_dir: RunDir) -> None:
    page = write(build(run_dir.path)).read_text()
    lines = page.splitlines()
    assert lines[2].startswith("Gradients: 2 of 2 measured cases are within 1e-06")
    assert "mean at 3.00e-08" in lines[2]
    assert "30.0 ms with sum and 60.0 ms with mean; 3 iterations are too few to tell whether they differ" in lines[4]
    assert "a &lt;b&gt;finding&lt;/b&gt; \\| here (1 case)" in page
    assert "| sum - mean |" in page
    assert sorted(path.name for path in run_dir.report.iterdir()) == [
        "cautions.csv",
        "cost.csv",
        "discrepancy.csv",
        "pairwise.csv",
        "parameters.csv",
        "ranks.csv",
        "report.md",
        "times.csv",
    ]
    table = pd.read_csv(run_dir.report / "discrepancy.csv")
    assert table[table.against == REFERENCE].relative_l2.tolist() == [0.0, 3e-8]


def test_exact_zero_is_told_from_tiny(run_dir: RunDir) -> None:
    rows = next(table.rows for table in build(run_dir.path).tables if table.title.startswith("Discrepancy"))
    assert rows["relative L2"].tolist() == ["0", "3.00e-08"]
    assert rows["ranks equal"].tolist() == ["yes", "yes"]


def test_pairs(run_dir: RunDir) -> None:
    (pair,) = pairwise(load_run(run_dir.path)).itertuples()
    assert (pair.pair, pair.max_abs, pair.relative_l2, pair.bitwise_equal) == ("sum - mean", 0.25, 0.125, False)


def test_nan_is_further_than_any_number(run_dir: RunDir) -> None:
    case = expand_cases(run_dir.config())[1]
    rows = [row for row in compared(case, math.nan) if row.against == REFERENCE]
    Writer(run_dir).write("discrepancies", case.case_id, rows)
    assert "mean has no finite distance from it" in build(run_dir.path).answer[0]


def test_the_first_line_is_of_every_launch(tmp_path: Path) -> None:
    """The first line counts a case as wrong if any launch is, and leaves out a case that one launch failed."""
    right = {"sum": (1e-8, 2e-8), "mean": (1e-8, 3e-3), "none": (5.0, 5.0)}
    run_dir = make_run(
        tmp_path,
        steps(0.01),
        *("workload=[mlp_digits]", "reduction=[sum,mean,none]", "launches=2"),
        relative_l2=lambda case, launch: right[case.reduction][launch],
        status=lambda case, launch: FAILED if case.reduction == "none" and launch else "ok",
    )
    line = build(run_dir.path).answer[0]
    assert "1 of 2 measured cases are within 1e-06" in line and line.endswith("reference; mlp_digits mean is 3.00e-03 away.")


@pytest.mark.parametrize(("predicted", "explained"), [(math.nan, False), (0.0, False), (0.2, True)])
def test_unequal_denominators_explain_a_distance_only_where_theory_does(
    run_dir: RunDir, predicted: float, explained: bool
) -> None:
    case = expand_cases(run_dir.config())[1]
    writer = Writer(run_dir)
    writer.write("discrepancies", case.case_id, compared(case, 0.25))
    writer.write(
        "findings", case.case_id, [Finding(case.case_id, "unequal_denominators", "ranks count between 1 and 2 terms", 2.0)]
    )
    writer.write_outcome(case, Outcome(case_id=case.case_id, status="ok", predicted_relative_l2=predicted))
    line = build(run_dir.path).answer[0]
    assert "mean is 0.25 away" in line
    assert ("the findings below say why" in line) == explained


def test_memory_is_shown_of_a_device_alone(tmp_path: Path) -> None:
    """A CPU process's resident set depends on the cases before it."""
    shown = {}
    for clock in ("host", "cuda_event"):
        run = load_run(make_run(tmp_path / clock, lambda case, launch, c=clock: {(c, "step"): np.ones((3, 2))}, *ONE).path)
        costs = cost(run, timing(run))
        shown[clock] = [name for name in cost_table(costs, pd.Series(dtype=str)) if "MiB" in name]
    assert shown == {"host": [], "cuda_event": ["peak allocated, MiB"]}


def test_captions_explain_what_a_table_has(tmp_path: Path) -> None:
    page = write(build(make_run(tmp_path, steps(0.01), *ONE).path)).read_text()
    assert "they need not add up." in page
    assert not any(words in page for words in ("Skew:", "Exposed:"))


ONE = ("workload=[mlp_digits]", "reduction=[sum]")


def test_a_failed_case(run_dir: RunDir) -> None:
    case = expand_cases(run_dir.config())[3]
    Writer(run_dir).write_outcome(case, Outcome(case_id=case.case_id, status=FAILED, reason="rank 1: RuntimeError: planted"))
    report = build(run_dir.path)
    assert report.failed
    assert "rank 1: RuntimeError: planted" in report.tables[-1].markdown()


def test_nothing_measured(tmp_path: Path) -> None:
    config = compose_config([f"results_dir={tmp_path}"], nproc_per_node=2)
    report = build(RunDir.create(config, NOW).path)
    assert "Nothing was measured: 27 missing" in report.answer[0]
    assert write(report).read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.0, "0"), (-0.0, "0"), (1e-300, "1.00e-300"), (1.234e-7, "1.23e-07"), (0.0123, "0.0123"), (0.5, "0.5")),
        *((123.456, "123"), (1e6, "1.00e+06"), (math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf"), (-0.25, "-0.25")),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0"), (1.5e-7, "0.0001"), (0.0123456, "12.3"), (12.3, "12300"), (1.5, "1500")]
)
def test_times(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


def test_texts_of_a_run_mean_nothing_to_markdown_or_a_terminal() -> None:
    rows = pd.DataFrame({"x": ["[bold]a[/bold]", "<script>", "a|b", "\x1b[31mred"]})
    page = Table("t", rows).markdown()
    assert "<script>" not in page
    assert "a\\|b" in page
    assert "\x1b" not in page
    console = Console(width=80, record=True)
    Table("t", rows).print(console)
    assert "[bold]a[/bold]" in console.export_text()
    assert escape("a*b_c _d_ __init__ &amp;") == "a\\*b_c \\_d\\_ \\_\\_init\\_\\_ &amp;amp;"


def test_by_command_line(run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run_dir.path)]) == 1, "a case is missing"
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.md")
    assert main(["show", str(tmp_path / "nosuch")]) == 2
    assert "not a run directory" in capsys.readouterr().err


def test_a_run_that_cannot_be_written_to_is_printed_all_the_same(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir.report.write_text("in the way")
    show([run_dir.path])
    *printed, last = capsys.readouterr().out.splitlines()
    assert len(printed) > 20
    assert last.startswith("the report is not written: ")
