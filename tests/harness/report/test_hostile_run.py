"""Runs made by another user: reading one writes only in its report/ and to paths that the reader names."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.rank.writer import Writer
from harness.report.__main__ import main
from harness.report.frame import load_run
from harness.schema.file_names import file_name
from harness.schema.matrix import expand_cases
from harness.schema.progress import read_progress
from harness.schema.record import OK, SCHEMA_VERSION, TABLES, Asked, Observation, Outcome
from harness.schema.run_dir import HELD, RunDir
from launch.compose import compose_config
from tests.running import HANG_S, ROOT
from tests.synthetic import NOW, make_run, steps, write_case
from tests.watching import STRACE, changes, look, outside, traced

HOSTILE = "x/../../../PWNED"
MINE = "mine"
FOLDERS = (
    "report",
    "report/tensorboard",
    "report/tensorboard/h",
    "report/tensorboard/h/{run}",
    "report/tensorboard/h/{run}/{case}",
)
FILES = (
    *("cost.csv", ".cost.csv.part", "report.md", ".report.md.part", "observations.csv", "summation_order.png"),
    *("check.json", "check.xml", "compare.md", "compare.csv", "compare.json", "compare.xml", "across.csv", "across.md"),
    *("trade-mlp_digits.png", "tensorboard/h/{run}/events.out.tfevents.1", "tensorboard/h/{run}/{case}/events.out.tfevents.1"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run; everything that reading it imports, and caches, is there."""
    overrides = ["workload=[mlp_digits]", "reduction=[sum]", "aggregation=[all_reduce,flat]", "name=h"]
    run_dir = make_run(tmp_path_factory.mktemp("made"), steps(0.01), *overrides)
    for command in (["show"], ["export", "tensorboard"]):
        assert main([*command, str(run_dir.path)]) == 0
    shutil.rmtree(run_dir.report)
    return run_dir.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy, to be made a hostile one."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folder of the reader with files of their own, which must not change."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text(MINE)
    (home / "events.out.tfevents.mine").write_text(MINE)
    monkeypatch.chdir(home)
    before = look(home)
    yield home
    assert look(home) == before


def commands(run: Path) -> list[list[str]]:
    """Commands that read a run; `compare` compares it with a copy."""
    base = run.with_name("base")
    if not base.exists():
        shutil.copytree(run, base, symlinks=True, ignore=lambda folder, names: {"report"})
    return [
        ["show", str(base), str(run)],
        ["check", str(run), "--max-step-ms", "1e9"],
        ["compare", str(base), str(run), "--gate", "time=50%"],
        ["export", "tensorboard", str(run)],
    ]


def spelled(name: str, run: Path) -> Path:
    return run / name.format(run=run.name, case=sorted(RunDir(run).listed())[0])


def test_files_that_are_links_are_replaced(run: Path, home: Path, tmp_path: Path) -> None:
    for number, name in enumerate(FILES):
        path = spelled(f"report/{name}", run)
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            path.symlink_to(home / "mine")
        else:
            shutil.copy(home / "mine", tmp_path / f"foreign{number}")
            os.link(tmp_path / f"foreign{number}", path)
    (run / "ranks" / "launcher").symlink_to(home / "mine")
    asked = commands(run)
    before = look(run, run / "report")
    with changes() as seen:
        assert [main(command) for command in asked] == [0] * 4
    assert outside(seen, run / "report", tmp_path / "base" / "report") == []
    assert len(seen) > 40, "writes are seen at all"
    assert look(run, run / "report") == before
    assert {path.read_text() for path in tmp_path.glob("foreign*")} == {MINE}
    assert not (run / "report" / "cost.csv").is_symlink()


@pytest.mark.parametrize("name", [*FOLDERS, "traces", "cases", "samples", "ranks", "scratch"])
def test_folders_that_are_links_are_refused(name: str, run: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = spelled(name, run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(home)
    wanted = commands(run) if "/" not in name else commands(run)[-1:]
    with changes() as seen:
        assert [main(command) for command in wanted] == [2] * len(wanted)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(wanted)
    assert all(
        f"{name.format(run=run.name, case=folder.name)}: is a symbolic link; expected a folder" in line for line in lines
    )
    assert outside(seen, run / "report") == []


def test_what_the_reader_names_may_be_a_link(run: Path, tmp_path: Path) -> None:
    """`latest`, a results folder elsewhere, `--to`, `--json`."""
    (tmp_path / "latest").symlink_to(run)
    (tmp_path / "real").mkdir()
    (tmp_path / "board").symlink_to(tmp_path / "real")
    (tmp_path / "file.json").write_text("")
    (tmp_path / "linked.json").symlink_to(tmp_path / "file.json")
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)
    latest = str(tmp_path / "latest")
    assert main(["show", latest]) == 0
    assert main(["export", "tensorboard", latest, "--to", str(tmp_path / "board")]) == 0
    assert (
        main(
            [
                "check",
                latest,
                "--max-step-ms",
                "1e9",
                "--json",
                str(tmp_path / "linked.json"),
                "--junit",
                str(tmp_path / "pipe"),
            ]
        )
        == 0
    )
    assert (run / "report" / "report.md").is_file()
    assert len(list((tmp_path / "real").rglob("events.*"))) == 3
    assert '"status": 0' in (tmp_path / "file.json").read_text()
    assert (tmp_path / "linked.json").is_symlink()
    assert os.read(pipe, 2**16).startswith(b"<?xml")
    os.close(pipe)
    assert (tmp_path / "pipe").is_fifo(), "as with /dev/stdout and /dev/null: they are written to, and stay what they are"


def test_a_pipe_without_a_path_is_written_to(run: Path) -> None:
    """`--json /dev/stdout | jq`, and `--json >(jq)`."""
    end, pipe = os.pipe()
    assert main(["check", str(run), "--max-step-ms", "1e9", "--json", f"/dev/fd/{pipe}"]) == 0
    os.close(pipe)
    with os.fdopen(end) as reading:
        assert reading.read().startswith('{\n  "status": 0')


def test_a_folder_below_to_may_not_be_a_link(run: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "h").symlink_to(home)
    assert main(["export", "tensorboard", str(run), "--to", str(tmp_path / "board")]) == 2
    assert "board/h: is a symbolic link" in capsys.readouterr().err


def hostile_names(results: Path) -> RunDir:
    """A run that has not begun, whose workload and probe are called as somebody likes it."""
    config = compose_config(
        ["workload=[mlp_digits]", "reduction=[sum]", "aggregation=[all_reduce,flat]", "name=h", "probe=[float_sums]"],
        nproc_per_node=2,
    )
    (workload,), (probe,) = config.workload.values(), config.probe.values()
    config = replace(config, results_dir=str(results), workload={HOSTILE: workload}, probe={HOSTILE: probe})
    run_dir = RunDir.create(config, NOW)
    run_dir.write_environment({"schema_version": SCHEMA_VERSION, "device": "cpu"})
    return run_dir


def test_every_writer_makes_a_file_name_of_a_text(tmp_path: Path, home: Path) -> None:
    """Ranks' tables, parts of a probe, traces; pictures, CSV files, gates' files, TensorBoard's folders."""
    results = tmp_path / "results"
    run_dir = hostile_names(results)
    writer, case = Writer(run_dir), expand_cases(run_dir.config())[0]
    answers, seen = [Asked(HOSTILE, "a", OK)], [("a", 0, Observation("", "error", 1.0))]
    with changes() as made:
        writer.write_samples(case, [("step", "host")], [torch.ones(3, 1)] * 2, [(1, 2)])
        writer.write_outcome(case, Outcome(case_id=case.case_id, status=OK))
        writer.write_diagnosis(case, [])
        for table in HELD["cases"][2:]:
            writer.write(table, case.case_id, [])
        writer.write_part(HOSTILE, answers, seen)
        writer.write_part(HOSTILE, answers, seen)
        assert run_dir.parts(HOSTILE) == [f"{HOSTILE}.part0", f"{HOSTILE}.part1"]
        writer.drop_parts(HOSTILE)
        writer.write_probe(HOSTILE, answers, seen)
    assert outside(made, *(run_dir.path / table for table in TABLES)) == []
    written = {Path(path).parent.name: Path(path).name for event, path in made if event == "os.rename"}
    assert set(written) == set(TABLES)
    assert set(written.values()) == {f"{file_name(case.case_id)}.parquet", f"{file_name(HOSTILE)}.parquet"}
    assert run_dir.trace(case.case_id, 0).parent.parent == run_dir.path / "traces"
    for one in expand_cases(run_dir.config()):
        write_case(run_dir, run_dir.config(), one, 0, steps(0.01)(one, 0))
    assert read_progress(run_dir, run_dir.config()).unfinished == []
    run = load_run(run_dir.path)
    assert len(run.cases) == 2 and run.damaged == {}
    run_dir.report.mkdir()
    before = look(results, run_dir.report)
    with changes() as made:
        assert main(["show", str(run_dir.path)]) == 0
        assert main(["export", "tensorboard", str(run_dir.path), "--to", str(tmp_path / "board")]) == 0
    assert outside(made, run_dir.report, tmp_path / "board") == []
    assert look(results, run_dir.report) == before
    assert {path.name for path in run_dir.report.glob("trade*.png")} == {f"trade-{file_name(HOSTILE)}.png"}
    assert {path.parent.name for path in (tmp_path / "board").rglob("events*")} == {
        run_dir.path.name,
        *(file_name(one.case_id) for one in expand_cases(run_dir.config())),
    }
    run_dir.make_part(HOSTILE)
    for one in expand_cases(run_dir.config()):
        run_dir.forget("cases", one.case_id)
    assert (run_dir.listed(), run_dir.listed("probes")) == (set(), {f"{file_name(HOSTILE)}.part0"})
    assert {path.name for path in (results / "h").iterdir()} == {"latest", run_dir.path.name}


@pytest.mark.full
def test_no_system_call_writes_elsewhere(run: Path, home: Path, tmp_path: Path) -> None:
    """Repeat the test of links under strace, which also shows the system calls of C libraries, and with MLflow."""
    if shutil.which(STRACE[0]) is None:
        pytest.skip("needs strace")
    for name in FILES:
        path = spelled(f"report/{name}", run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(home / "mine")
    store, temporary = tmp_path / "store", tmp_path / "temporary"
    for folder in (store, temporary):
        folder.mkdir()
    quiet = {
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(ROOT),
    }
    for number, command in enumerate([*commands(run), ["export", "mlflow", str(run), "--to", f"sqlite:///{store}/mlflow.db"]]):
        log = tmp_path / f"strace{number}"
        whole = [*STRACE, "-o", str(log), sys.executable, "-m", "harness.report", *command]
        done = subprocess.run(whole, cwd=home, env={**os.environ, **quiet}, capture_output=True, timeout=HANG_S, check=False)
        assert done.returncode == 0, done.stderr.decode()
        seen = traced(log.read_text(errors="replace").splitlines())
        allowed = [run / "report", tmp_path / "base" / "report", *([store, temporary] if "mlflow" in command else [])]
        assert len(seen) > 2, "writes are seen at all"
        assert outside(seen, *allowed) == []
    (run / "environment.json").unlink()
    (run / "environment.json").symlink_to(home / "mine")
    done = subprocess.run(whole[len(STRACE) + 2 :], cwd=home, env={**os.environ, **quiet}, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"not exported:\n  environment.json" in done.stdout, "it would be uploaded"
