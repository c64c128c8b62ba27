"""Going on with a run: what is done, what is left alone, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.report.frame import load_run
from harness.schema.run_dir import RunDir
from launch.__main__ import main
from tests.chaos.run import stamps
from tests.running import BEGUN_S, ENDED_S, launch, start_launch, wait_until

SMALL = ("experiment=smoke", "workload=[mlp_digits]", "probe=[float_sums]", "launches=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    done = launch(*SMALL, f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return (results / "smoke" / "latest").resolve()


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDir:
    """A copy, to be harmed."""
    return RunDir(shutil.copytree(whole, tmp_path / "run"))


@pytest.mark.parametrize("place", [0, 1])
def test_only_what_is_missing_is_done(run: RunDir, whole: Path, place: int) -> None:
    """Also where it is the one that the others are held against."""
    case = load_run(run.path).cases.case_id[place]
    run.forget("cases", case)
    run.forget("probes", "float_sums")
    run_of = set(load_run(run.path).cases.case_id)
    before = stamps(run, run_of)
    done = launch(f"resume={run.path}")
    assert done.returncode == 0, done.stderr
    asked = len(load_run(whole).launched) + 1
    assert f"{asked - 2} of {asked} cases and probes stand; 0 failed and 2 missing ones are done now" in done.stdout
    after = stamps(run, run_of | {case})
    assert {name: stamp for name, stamp in after.items() if name in before} == before
    assert {name for name in after if case in name} - set(before)
    ours, theirs = load_run(run.path), load_run(whole)
    assert ours.every("discrepancies").equals(theirs.every("discrepancies"))
    assert not ours.missing


def test_a_whole_run_has_nothing_to_do(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"resume={run.path}"]) == 0
    assert "nothing to do: all" in capsys.readouterr().out


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
    other = load_run(run.path).cases.case_id[1]
    shutil.copy(run.case_file("memory", other), run.case_file("memory", case))


def _foreign_discrepancies(run: RunDir, case: str) -> None:
    shutil.copy(run.case_file("cases", case), run.case_file("discrepancies", case))


@pytest.mark.parametrize("harm", [_truncated, _empty, _foreign, _part, _another_cases, _foreign_discrepancies])
def test_a_file_that_is_not_whole_is_said_and_measured_again(
    run: RunDir, whole: Path, harm: Callable[[RunDir, str], None]
) -> None:
    case = load_run(run.path).cases.case_id[0]
    harm(run, case)
    harmed = load_run(run.path)
    assert harmed.damaged
    assert harmed.missing == (case,)
    assert len(harmed.launched) == len(load_run(whole).launched) - 1
    assert launch(f"resume={run.path}").returncode == 0
    mended = load_run(run.path)
    assert not mended.damaged
    assert mended.every("discrepancies").equals(load_run(whole).every("discrepancies"))


def test_a_case_that_is_not_repeated_is_said_beside_those_held_against_it(run: RunDir) -> None:
    first, second = load_run(run.path).cases.case_id[:2]
    path = run.case_file("cases", first)
    row = pd.read_parquet(path).assign(gradient_sha256="of another gradient")
    row.to_parquet(path)
    run.forget("cases", second)
    assert launch(f"resume={run.path}").returncode == 0
    findings = load_run(run.path).findings
    said = findings[findings.kind == "not_repeated"]
    assert list(said.case_id) == [second]
    assert said.statement.item().startswith(f"{first} was run again when the run went on, with other bits")


def test_a_stranger_among_the_files_is_left_alone(run: RunDir, whole: Path) -> None:
    (run.path / "cases" / "stranger.parquet").write_text("I am none of yours")
    (run.path / "cases" / ".hidden.part").write_text("half")
    assert load_run(run.path).launched.equals(load_run(whole).launched)


REFUSED = [
    (("iterations=7",), "iterations=7: the run began with another configuration"),
    (("threads_per_rank=2",), "threads_per_rank=2: the run began with another configuration"),
    (("torchrun.nproc_per_node=3",), "torchrun.nproc_per_node=3: the run began with another configuration"),
    (("reduction=[sum]",), "reduction: a run that goes on keeps its cases"),
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


def test_a_changed_environment_is_refused_with_what_changed(run: RunDir) -> None:
    run.forget("probes", "float_sums")
    environment = run.environment()
    environment["versions"]["torch"] = "1.13.0"
    run.write_environment(environment)
    done = launch(f"resume={run.path}")
    assert done.returncode == 2
    assert "versions.torch: 1.13.0, now " in done.stderr
    assert "accept_changes=true" in done.stderr
    assert launch(f"resume={run.path}", "accept_changes=true").returncode == 0
    noted = json.loads((run.path / "environment.json").read_text())["changed"]
    assert any("versions.torch" in line for change in noted for line in change["lines"])


def test_a_run_at_work_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start_launch("experiment=smoke", f"results_dir={tmp_path}")
    try:
        assert wait_until(lambda: bool(list(tmp_path.glob("smoke/2*/ranks/*.state"))), BEGUN_S)
        assert main([f"resume={next(tmp_path.glob('smoke/2*'))}"]) == 2
        assert f"is at work: its launcher is process {process.pid} on" in capsys.readouterr().err
    finally:
        process.terminate()
        process.communicate(timeout=ENDED_S)


def test_resume_of_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"resume={tmp_path}"]) == 2
    assert "is not a run directory" in capsys.readouterr().err
