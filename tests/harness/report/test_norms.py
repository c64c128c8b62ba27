"""Loss, gradient norms and norms by group of parameters, in the report and in `compare`."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.rank.writer import Writer
from harness.report.__main__ import main
from harness.report.discrepancy import discrepancy, discrepancy_table, parameters
from harness.report.frame import load_run
from harness.report.norms import norms, norms_table
from harness.report.render import _by_workload, build, write
from harness.report.verdict import EQUAL, LESS, MORE, SAME, UNCLEAR, judge_figure
from harness.schema.matrix import expand_cases
from harness.schema.record import RANK_0, REFERENCE, Norm
from harness.schema.run_dir import RunDir
from tests.synthetic import make_run, steps

FIGURES = {"loss": 2.0, "reference_loss": 2.0, "gradient_norm": 5.0, "reference_gradient_norm": 5.0}


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of one case, without norms."""
    asked = ("workload=[mlp_digits]", "reduction=[sum]")
    return make_run(tmp_path_factory.mktemp("skeleton"), steps(0.01), *asked, relative_l2=lambda case, launch: 0.1)


Make = Callable[..., RunDir]


@pytest.fixture
def made(skeleton: RunDir, tmp_path: Path) -> Make:
    """Copy the run, with other figures; `groups`: group to norm, norm of the reference, and L2 of the difference."""

    def copied(name: str, groups: dict[str, tuple[float, float, float]], **figures: float) -> RunDir:
        run_dir = RunDir(shutil.copytree(skeleton.path, tmp_path / name))
        (file,) = run_dir.table("cases").iterdir()
        content = pq.ParquetFile(file).read()
        (row,) = content.to_pylist()
        pq.write_table(pa.Table.from_pylist([row | FIGURES | figures], content.schema), file)
        rows = [Norm(row["case_id"], group, 10, *lengths, lengths[2] / lengths[1]) for group, lengths in groups.items()]
        Writer(run_dir).write("norms", row["case_id"], rows)
        return run_dir

    return copied


FAR = {"": (5.0, 5.0, 1.0), "embed": (3.0, 3.0, 0.1), "layers.0": (4.0, 4.0, math.sqrt(0.99))}


def columns_of(run_dir: RunDir) -> dict[str, str]:
    run = load_run(run_dir.path)
    (row,) = discrepancy_table(run, discrepancy(run)).to_dict("records")
    return row


def test_a_reference_stands_beside_a_figure_where_the_shown_digits_differ(made: Make) -> None:
    row = columns_of(made("equal", FAR, loss=2.00001, gradient_norm=math.nan, reference_gradient_norm=0.25))
    assert (row["loss"], row["gradient norm"]) == ("2", "NaN (0.25)")
    row = columns_of(made("apart", FAR, loss=2.002, gradient_norm=math.inf))
    assert (row["loss"], row["gradient norm"]) == ("2.002 (2)", "inf (5)")


def test_a_loss_that_all_cases_share_stands_in_the_title() -> None:
    rows = pd.DataFrame({"workload": ["a", "a", "b", "b"], "loss": ["2", "2", "2", "3"], "max abs": ["0", "1", "0", "1"]})
    shared, own = _by_workload("Discrepancy", rows, "", common=["loss"])
    assert (shared.title, list(shared.rows)) == ("Discrepancy: a; loss 2", ["max abs"])
    assert (own.title, list(own.rows)) == ("Discrepancy: b", ["loss", "max abs"])


def test_the_groups_that_a_distance_comes_from(made: Make) -> None:
    run = load_run(made("far", FAR).path)
    shown = norms_table(run, norms(run))
    assert shown.group.tolist() == ["layers.0", "embed"]
    assert shown["share of the squared distance"].tolist() == ["99%", "1%"]
    assert norms(run).group.tolist() == ["", "embed", "layers.0"]
    assert norms(run).share.tolist() == pytest.approx([1.0, 0.01, 0.99])


def test_a_group_that_is_not_finite_leads(made: Make) -> None:
    groups = {"": (math.nan, 5.0, math.nan), "embed": (3.0, 3.0, 0.1), "layers.0": (math.nan, 4.0, math.nan)}
    run = load_run(made("nan", groups).path)
    shown = norms_table(run, norms(run))
    assert shown.group.tolist() == ["layers.0", "embed"]
    assert shown["norm"].tolist() == ["NaN (4)", "3"]


def test_groups_and_parameters_are_of_the_furthest_launch(tmp_path: Path) -> None:
    """`ranks equal` counts all launches."""
    asked = ("workload=[mlp_digits]", "reduction=[sum]", "launches=2")
    run_dir = make_run(tmp_path, steps(0.01), *asked, relative_l2=lambda case, launch: (0.1, 0.2)[launch])
    (case,) = expand_cases(run_dir.config())
    for launch, (group, apart) in enumerate([("embed", 0.0), ("layers.0", 1.0)]):
        rows = [Norm(case.case_id, name, 10, 5.0, 5.0, length, length / 5) for name, length in (("", 1.0), (group, 1.0))]
        writer = Writer(run_dir, launch)
        writer.write("norms", case.case_id, rows)
        file = run_dir.case_file("discrepancies", case.case_id, launch)
        (whole,) = [row for row in pq.ParquetFile(file).read().to_pylist() if row["against"] == REFERENCE]
        of_rank_1 = whole | {"rank": 1, "against": RANK_0, "bitwise_equal": not apart}
        writer.write("discrepancies", case.case_id, [whole, whole | {"parameter": f"{group}.weight", "l2": 1.0}, of_rank_1])
    report = build(run_dir.path)
    assert norms(report.run)[["group", "launch"]].to_numpy().tolist() == [["", 1], ["layers.0", 1]]
    assert parameters(report.run)[["parameter", "launch"]].to_numpy().tolist() == [["layers.0.weight", 1]]
    (row,) = discrepancy_table(report.run, discrepancy(report.run)).to_dict("records")
    assert (row["most of it from"], row["ranks equal"]) == ("layers.0.weight 100%", "no")


def test_a_loss_that_was_not_recorded_is_left_out(made: Make) -> None:
    """Its reference is left out, too; a loss that is NaN has one."""
    silent, lost = {"loss": math.nan, "reference_loss": math.nan}, {"loss": math.nan}
    row = columns_of(made("silent", FAR, **silent))
    assert (row["loss"], row["gradient norm"]) == ("", "5")
    assert columns_of(made("lost", FAR, **lost))["loss"] == "NaN (2)"
    assert "loss" not in compared(made("base", FAR, **silent), made("new", FAR, **silent))
    assert compared(made("recorded", FAR), made("nan", FAR, **lost))["loss"]["verdict"] == "higher"


def test_close_cases_have_no_section_of_groups(made: Make) -> None:
    near = {group: (mine, theirs, 1e-7 * theirs) for group, (mine, theirs, _) in FAR.items()}
    close, far = (write(build(made(name, groups).path)) for name, groups in (("near", near), ("far", FAR)))
    assert "Norms by parameter group" not in close.read_text()
    assert "## Norms by parameter group: mlp\\_digits" in far.read_text().replace("mlp_digits", "mlp\\_digits")
    assert [len(pd.read_csv(page.parent / "norms.csv")) for page in (close, far)] == [3, 3]


def test_a_run_without_the_columns_has_none_of_it(made: Make, skeleton: RunDir, tmp_path: Path) -> None:
    old = without_figures(skeleton, tmp_path / "old")
    run = load_run(old.path)
    assert not run.damaged
    page = write(build(old.path))
    assert not any(words in page.read_text() for words in ("gradient norm", "loss", "Norms by"))
    assert not (page.parent / "norms.csv").exists()
    assert main(["compare", str(made("new", FAR).path), str(old.path)]) == 0
    compared = pd.read_csv(page.parent / "compare.csv")
    assert set(compared.metric) == {"time", "memory", "relative_l2"}
    assert "difference" not in compared


def test_a_lost_file_of_norms_is_named(made: Make) -> None:
    run_dir = made("lost", FAR)
    (file,) = run_dir.table("norms").iterdir()
    file.unlink()
    assert load_run(run_dir.path).damaged == {f"norms/{file.name}": "missing"}


def without_figures(skeleton: RunDir, path: Path) -> RunDir:
    """As an earlier version wrote it."""
    run_dir = RunDir(shutil.copytree(skeleton.path, path))
    for file in run_dir.table("cases").iterdir():
        pq.write_table(pq.ParquetFile(file).read().drop_columns(list(FIGURES)), file)
    return run_dir


def compared(base: RunDir, new: RunDir) -> dict[str, dict[str, Any]]:
    """Metric to its row, through the command."""
    assert main(["compare", str(base.path), str(new.path)]) == 0
    told = json.loads((new.path / "report" / "compare.json").read_text())
    return {row["metric"]: row for row in told["compared"]}


def test_compare_shows_both_sides_and_the_group_that_moved_most(made: Make) -> None:
    moved = {"": (6.0, 5.0, 1.0), "embed": (3.1, 3.0, 0.1), "layers.0": (5.0, 4.0, 1.0)}
    new = made("new", moved, gradient_norm=6.0)
    found = compared(made("base", FAR), new)
    assert (found["loss"]["verdict"], found["loss"]["difference"]) == (EQUAL, 0.0)
    norm = found["gradient_norm"]
    assert (norm["base"], norm["new"], norm["verdict"]) == (5.0, 6.0, "higher")
    assert (norm["difference"], norm["moved_most"], norm["moved_most_difference"]) == pytest.approx((0.2, "layers.0", 0.25))
    assert "layers.0: +2.50e-01" in (new.path / "report" / "compare.md").read_text()


def test_compare_shows_a_norm_that_has_become_nan(made: Make) -> None:
    lost = {"": (math.nan, 5.0, math.nan), "embed": (3.5, 3.0, 0.1), "layers.0": (math.nan, 4.0, math.nan)}
    found = compared(made("base", FAR), made("new", lost, loss=3.0, gradient_norm=math.nan))
    assert found["loss"]["verdict"] == found["gradient_norm"]["verdict"] == "higher"
    assert (found["gradient_norm"]["new"], found["gradient_norm"]["moved_most"]) == (None, "layers.0")


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        ([2.0], [2.0], EQUAL),
        ([2.0] * 3, [2.0] * 2, EQUAL),
        ([2.0], [2.0 + 1e-15], MORE),
        ([-1.0], [-2.0], LESS),
        ([0.0], [1.0], MORE),
        ([1.0], [math.nan], MORE),
        ([math.nan] * 2, [math.nan], EQUAL),
        ([1.0, 1.01, 0.99, 1.0, 1.02], [1.01, 1.0, 1.0, 0.99, 1.005], SAME),
        ([-1.0, -1.1], [-1.0, -1.2], UNCLEAR),
    ],
)
def test_verdicts_on_figures(base: list[float], new: list[float], verdict: str) -> None:
    assert judge_figure(np.array(base), np.array(new)).verdict == verdict
