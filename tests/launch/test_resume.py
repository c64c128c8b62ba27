"""Going on with a run: what is done, what is left alone, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.report.frame import Run, load_run
from harness.schema.run_dir import RunDir
from launch.__main__ import main
from launch.resume import configure_resume
from launch.verdict import FAILURE, Verdict
from tests.chaos.run import sorted_rows, stamps
from tests.launch.standins import StandIn
from tests.running import launch
from tests.synthetic import make_run, steps
from tests.watching import look
from tests.worlds.pool import Pool

SMALL = ("experiment=smoke", "workload=[mlp_digits]", "probe=[float_sums]")
SETTINGS = (*SMALL, "reduction=[none,sum,mean,micro_batch,one_by_one]")
"""Two settings of five cases each, whose gradients are held against each other."""


def _whole(results: Path, *overrides: str) -> Path:
    done = launch(*overrides, f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return (results / "smoke" / "latest").resolve()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _whole(tmp_path_factory.mktemp("whole"), *SETTINGS)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDir:
    """A copy, to be harmed."""
    return RunDir(shutil.copytree(whole, tmp_path / "run"))


def test_a_whole_run_has_nothing_to_do(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"resume={run.path}"]) == 0
    assert "nothing to do: all" in capsys.readouterr().out


Harm = Callable[[RunDir, str], None]


def _truncated(run: RunDir, case: str) -> None:
    path = run.case_file("cases", case)
    path.write_bytes(path.read_bytes()[:-10])


def _empty(run: RunDir, case: str) -> None:
    run.case_file("cases", case).write_bytes(b"")


def _foreign(run: RunDir, case: str) -> None:
    shutil.copy(run.case_file("discrepancies", case), run.case_file("cases", case))


def _part(run: RunDir, case: str) -> None:
    path = run.case_file("samples", case)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _another_cases(run: RunDir, case: str) -> None:
    other = next(one for one in sorted(run.listed()) if one != case)
    shutil.copy(run.case_file("memory", other), run.case_file("memory", case))


def _foreign_discrepancies(run: RunDir, case: str) -> None:
    shutil.copy(run.case_file("cases", case), run.case_file("discrepancies", case))


def _forgotten(run: RunDir, case: str) -> None:
    run.forget("cases", case)


def _changed_row(run: RunDir, case: str, **columns: str) -> None:
    path = run.case_file("cases", case)
    rows = pq.read_table(path)  # pandas would write other types, and a file of other types is written again
    for name, text in columns.items():
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), pa.array([text]))
    pq.write_table(rows, path)


def _failed(run: RunDir, case: str) -> None:
    _changed_row(run, case, status="failed", reason="planted")


def _other_bits(run: RunDir, case: str) -> None:
    _changed_row(run, case, gradient_sha256="of another gradient")


DAMAGE = (_truncated, _empty, _foreign, _part, _another_cases, _foreign_discrepancies)


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_file_that_is_not_whole_is_said_and_its_case_is_missing(run: RunDir, whole: Path, harm: Harm) -> None:
    case = load_run(run.path).cases.case_id[0]
    harm(run, case)
    harmed = load_run(run.path)
    assert harmed.damaged
    assert harmed.missing == (case,)
    assert len(harmed.launched) == len(load_run(whole).launched) - 1


HARMS: tuple[Harm | None, ...] = (
    *(_truncated, _empty, _foreign, None, _forgotten),  # the first case of this setting, which the others are held against
    *(_other_bits, _part, _another_cases, _foreign_discrepancies, _failed),
)
"""Harm to each case of `whole`, in their order."""
KEPT = (3, 5)


@dataclass(frozen=True)
class Resumed:
    """A run that was harmed in many ways and has gone on once."""

    run: Run
    output: str
    cases: list[str]
    before: dict[str, tuple[int, int]]
    """Files of the cases that stand, before the run went on, and `after`."""
    after: dict[str, tuple[int, int]]
    harmed: Run
    foreign: dict[str, tuple[Any, ...]]
    """Files that links of the run led to, before it went on, and `foreign_after`."""
    foreign_after: dict[str, tuple[Any, ...]]


@pytest.fixture(scope="module")
def resumed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    run = RunDir(shutil.copytree(whole, tmp_path_factory.mktemp("resumed") / "run"))
    cases = [str(case) for case in load_run(whole).cases.case_id]
    for case, harm in zip(cases, HARMS, strict=True):
        if harm:
            harm(run, case)
    run.forget("probes", "float_sums")
    _plant_torch(run)
    harmed, kept = load_run(run.path), {cases[place] for place in KEPT}
    before = stamps(run, kept)
    foreign = tmp_path_factory.mktemp("foreign")
    _plant_links(run, cases[0], foreign)
    foreign_before = look(foreign)
    done = launch(f"resume={run.path}", "accept_changes=true")
    assert done.returncode == 0, done.stderr
    return Resumed(load_run(run.path), done.stdout, cases, before, stamps(run, kept), harmed, foreign_before, look(foreign))


def _plant_links(run: RunDir, case: str, foreign: Path) -> None:
    """In the place of files that are written when the run goes on: links to copies of them elsewhere.

    A config.yaml that is a link is refused, and such an environment.json is not read.
    """
    paths = [run.case_file(table, case) for table in ("cases", "samples", "memory")]
    paths += [run.report / "report.md", run.report / "cost.csv"]
    paths += [run.ranks.state(0), run.ranks.path / "set_aside.json"]
    for number, path in enumerate(paths):
        shutil.copy(path, foreign / str(number))
        path.unlink()
        path.symlink_to(foreign / str(number))


def test_only_what_is_missing_or_failed_is_done(resumed: Resumed) -> None:
    assert "2 of 11 cases and probes stand; 1 failed and 8 missing ones are done now" in resumed.output
    assert resumed.before
    assert resumed.after == resumed.before


def test_everything_is_there_afterwards_and_equal(resumed: Resumed, whole: Path) -> None:
    assert len(resumed.harmed.damaged) == len(DAMAGE)
    assert not resumed.run.missing
    assert not resumed.run.damaged
    assert set(resumed.run.cases.status) == {"ok"}
    assert sorted_rows(resumed.run.path).equals(sorted_rows(whole))
    assert len(resumed.run.observations) == len(load_run(whole).observations)


def test_nothing_is_written_through_links_of_the_run(resumed: Resumed) -> None:
    assert len(resumed.foreign) == 7
    assert resumed.foreign_after == resumed.foreign
    assert not [path for path in resumed.run.path.rglob("*") if path.is_symlink()]


def test_a_case_that_is_not_repeated_is_said_beside_those_held_against_it(resumed: Resumed) -> None:
    said = resumed.run.findings[resumed.run.findings.kind == "not_repeated"]
    assert list(said.case_id) == resumed.cases[6:]
    first = resumed.cases[5]
    assert said.statement.str.startswith(f"{first} was run again when the run went on, with other bits").all()


def test_a_changed_environment_that_is_accepted_is_noted(resumed: Resumed) -> None:
    noted = json.loads((resumed.run.path / "environment.json").read_text())["changed"]
    assert any("versions.torch" in line for change in noted for line in change["lines"])


def _plant_torch(run: RunDir) -> None:
    environment = run.environment()
    environment["versions"]["torch"] = "1.13.0"
    run.write_environment(environment)


@pytest.mark.parametrize("ranks", [2])
def test_a_changed_environment_is_refused_with_what_changed(worlds: Pool, ranks: int, run: RunDir) -> None:
    run.forget("probes", "float_sums")
    _plant_torch(run)
    before = sorted(run.path.glob("*/*.parquet"))
    told = worlds.run(ranks, "tests.worlds.refusals:resume_refusal", str(run.path))
    assert len(told) == ranks
    for said in told:
        assert "versions.torch: 1.13.0, now " in said
        assert "--accept-changes" in said
    assert sorted(run.path.glob("*/*.parquet")) == before


@pytest.fixture
def synthetic(tmp_path: Path) -> RunDir:
    """A run of three launches that no rank has made."""
    return make_run(tmp_path, steps(0.01), "workload=[mlp_digits]", "reduction=[sum,mean]", "launches=3")


def test_only_launches_that_lack_something_are_started(synthetic: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn()
    monkeypatch.setattr("launch.job.run_launch", stand_in)
    first, second = sorted(synthetic.listed())
    synthetic.forget("cases", first, launch=1)
    failed = synthetic.case_file("cases", second, launch=2)
    pd.read_parquet(failed).assign(status="failed", reason="planted").to_parquet(failed)
    going = configure_resume([f"resume={synthetic.path}"])
    assert going.launches == (1, 2)
    assert going.said == "4 of 6 cases and probes stand; 1 failed and 1 missing ones are done now"
    assert main([f"resume={synthetic.path}"]) == 0
    assert [number for _, number in stand_in.launched] == [1, 2]
    assert set(load_run(synthetic.path).launched.status) == {"ok"}


def test_a_case_that_fails_again_makes_the_status_1(synthetic: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.job.run_launch", StandIn(lambda config, case: {"status": "failed", "reason": "again"}))
    synthetic.forget("cases", sorted(synthetic.listed())[0], launch=1)
    assert main([f"resume={synthetic.path}"]) == 1


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two launches."""
    return _whole(tmp_path_factory.mktemp("twice"), *SMALL, "launches=2")


@pytest.mark.full
@pytest.mark.parametrize("place", [0, 1])
def test_one_case_of_two_launches_is_done_again(twice: Path, tmp_path: Path, place: int) -> None:
    """Also where it is the one that the others are held against."""
    run = RunDir(shutil.copytree(twice, tmp_path / "run"))
    case = load_run(run.path).cases.case_id[place]
    run.forget("cases", case)
    run.forget("probes", "float_sums")
    run_of = set(load_run(run.path).cases.case_id)
    before = stamps(run, run_of)
    done = launch(f"resume={run.path}")
    assert done.returncode == 0, done.stderr
    asked = len(load_run(twice).launched) + 1
    assert f"{asked - 2} of {asked} cases and probes stand; 0 failed and 2 missing ones are done now" in done.stdout
    after = stamps(run, run_of | {case})
    assert {name: stamp for name, stamp in after.items() if name in before} == before
    assert {name for name in after if case in name} - set(before)
    ours, theirs = load_run(run.path), load_run(twice)
    assert ours.every("discrepancies").equals(theirs.every("discrepancies"))
    assert not ours.missing


@pytest.mark.full
def test_a_changed_environment_by_command_line(run: RunDir) -> None:
    run.forget("probes", "float_sums")
    _plant_torch(run)
    done = launch(f"resume={run.path}")
    assert done.returncode == 2
    assert "versions.torch: 1.13.0, now " in done.stderr
    assert "--accept-changes" in done.stderr


def test_a_stranger_among_the_files_is_left_alone(run: RunDir, whole: Path) -> None:
    (run.path / "cases" / "stranger.parquet").write_text("I am none of yours")
    (run.path / "cases" / ".hidden.part").write_text("half")
    assert load_run(run.path).launched.equals(load_run(whole).launched)


REFUSED = [
    (("iterations=7",), "iterations=7: not the value that the run began with"),
    (("threads_per_rank=2",), "threads_per_rank=2: not the value that the run began with"),
    (("torchrun.nproc_per_node=3",), "torchrun.nproc_per_node=3: not the value that the run began with"),
    (("reduction=[sum]",), "reduction: resume cannot change which cases run"),
    (("nonsense=1",), "nonsense"),
    (("launch=torchrun_nodes", "launch.hosts=[a,b]"), "the run began with 2 ranks on 1 hosts, and this would be 4 on 2"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_a_changed_configuration_is_refused(
    run: RunDir, overrides: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.forget("probes", "float_sums")
    assert main([f"resume={run.path}", *overrides]) == 2
    assert words in capsys.readouterr().err


def test_what_it_is_configured_with_already_may_be_said_again(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.forget("probes", "float_sums")
    assert main([f"resume={run.path}", f"iterations={run.config().iterations}", "dry_run=true"]) == 0
    assert "would run" in capsys.readouterr().out


def test_nothing_in_a_configuration_refers_to_anything_else(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("env: {}", "env:\n  A: ${oc.env:HOME}"))
    assert main([f"resume={run.path}"]) == 2
    assert "refers to something else" in capsys.readouterr().err


def test_an_environment_that_cannot_be_read_is_refused(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.forget("probes", "float_sums")
    (run.path / "environment.json").write_text('{"schema_ver')
    assert main([f"resume={run.path}"]) == 2
    assert "environment.json is missing or not whole" in capsys.readouterr().err


def test_an_edited_configuration_is_refused_and_accepted(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.forget("probes", "float_sums")
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("warm_up: ", "warm_up: 1"))
    assert main([f"resume={run.path}"]) == 2
    assert "config.yaml has changed since the run began" in capsys.readouterr().err
    assert main([f"resume={run.path}", "accept_changes=true", "dry_run=true"]) == 0


def test_a_run_at_work_is_left_alone(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with run.occupied():
        assert main([f"resume={run.path}"]) == 2
    assert f"is at work: its launcher is process {os.getpid()} on" in capsys.readouterr().err


def test_a_launch_occupies_its_run(run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    statuses = []

    def look(*arguments: object) -> Verdict:
        statuses.append(main([f"resume={run.path}"]))
        return Verdict(FAILURE)

    monkeypatch.setattr("launch.job.run_all", look)
    run.forget("probes", "float_sums")
    assert main([f"resume={run.path}"]) == 1
    assert statuses == [2]
    assert "is at work: its launcher is process" in capsys.readouterr().err


def test_resume_of_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"resume={tmp_path}"]) == 2
    assert "is not a run directory" in capsys.readouterr().err
