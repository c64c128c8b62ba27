"""No damaged file of a run directory costs more than its own rows, and reading one writes and executes nothing elsewhere."""

import ast
import os
from collections.abc import Collection
from pathlib import Path

import pytest

from harness.report.frame import Run
from tests.conftest import Measure
from tests.damage.trial import COMMANDS, Trial, try_clean, try_one
from tests.synthetic import make_run, steps

ROOT = Path(__file__).parent.parent
SEED = 0
FEW, MANY, AT_ONCE = 15, 500, 20
"""Trials of make test, of make test-all, and of one of its tests."""
REPEAT = "REDUCEBENCH_DAMAGE"
"""Environment variable `<fixture>:<seed>:<number>` of one trial that is to be repeated."""


@pytest.fixture(scope="session")
def whole(measure: Measure) -> Run:
    """A run with every table, two workloads, a fault, probes, traces and verdicts."""
    small = ("iterations=2", "warm_up=1", "drift.steps=2", "diagnose=true", "profile=true", "fault=[dropped_rank]")
    probes = ("probe=[staleness,collectives]", "probe.staleness.trials=2", "probe.staleness.controls=2")
    sweep = ("most_bytes=64", "beside_bytes=16", "iterations=2", "dtypes=[float32]", "in_flight=[1]", "in_place=[true]")
    cases = ("workload=[mlp_digits,transformer_topics]", "reduction=[mean,sum]", "aggregation=[all_reduce]", "sync=[none]")
    return measure(*small, *cases, *probes, *(f"probe.collectives.{key}" for key in sweep))


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that no rank has measured: cheap to read."""
    folder = tmp_path_factory.mktemp("synthetic")
    return make_run(folder, steps(0.01, iterations=3), "workload=[mlp_digits]", "reduction=[sum,mean]", "launches=2").path


def failures(base: Path, folder: Path, seed: int, numbers: range, name: str) -> str:
    """One text of all trials with faults, each with the command that repeats it."""
    trials = [try_one(base, folder / str(number), seed, number) for number in numbers]
    return "\n".join(
        _words(trial, f"{name}:{seed}:{number}") for trial, number in zip(trials, numbers, strict=True) if trial.faults
    )


def _words(trial: Trial, repeat: str) -> str:
    faults = "\n".join(trial.faults)
    return f"{trial.name}\n{faults}\nrepeat: {REPEAT}={repeat} .venv/bin/python -m pytest tests/test_damage.py -k repeated"


@pytest.mark.full
def test_what_is_whole_is_read_in_silence(whole: Run, tmp_path: Path) -> None:
    """The commands that trials run find nothing wrong with the run that trials damage."""
    assert not try_clean(whole.path, tmp_path)


def test_damage(synthetic: Path, tmp_path: Path) -> None:
    """A few trials, of every command; those of every kind of mutation are marked full."""
    assert not failures(synthetic, tmp_path, SEED, range(FEW), "synthetic")


@pytest.mark.full
@pytest.mark.parametrize("first", range(0, MANY, AT_ONCE))
def test_much_damage(whole: Run, tmp_path: Path, first: int) -> None:
    assert not failures(whole.path, tmp_path, SEED, range(first, first + AT_ONCE), "whole")


if REPEAT in os.environ:

    def test_repeated(request: pytest.FixtureRequest, tmp_path: Path) -> None:
        """The one trial that the environment variable names."""
        name, seed, number = os.environ[REPEAT].split(":")
        base = request.getfixturevalue(name)
        path = base.path if isinstance(base, Run) else base
        assert not failures(path, tmp_path, int(seed), range(int(number), int(number) + 1), name)


def test_few_trials_run_every_command() -> None:
    assert len(COMMANDS) <= FEW


READS = {
    "open",
    "read_text",
    "read_bytes",
    "read_parquet",
    "read_table",
    "read_csv",
    "ParquetFile",
    "fdopen",
    "safe_load",
    "load",
}
"""Names of calls that open a file, or read one."""
ELSEWHERE = {
    ("harness/schema/reading.py", "open_file"),
    ("harness/schema/rank_state.py", "this_machine"),  # /proc
    ("harness/schema/terminal.py", "_drop"),  # /dev/null
    ("harness/schema/terminal.py", "_open_missing"),
    ("harness/schema/tables.py", "_read"),  # what open_file has opened
    ("harness/schema/tables.py", "has_schema"),
    ("launch/devices.py", "_has_amd_gpu"),  # /sys
    ("launch/source.py", "_read"),
    ("harness/schema/rank_state.py", "note_death"),  # writes
    ("harness/schema/ranks_dir.py", "open_log"),
    ("harness/schema/run_dir.py", "looked_at"),
    ("harness/schema/run_dir.py", "occupied"),
    ("harness/schema/whole_files.py", "_open_inner"),
    ("harness/schema/whole_files.py", "_open_regular"),
    ("harness/schema/whole_files.py", "open_folder"),
    ("harness/schema/whole_files.py", "open_new"),
    ("harness/schema/whole_files.py", "writing"),
}
"""Functions that open something else than a file of a run for reading."""
READERS = ("harness/schema", "harness/report", "launch", "harness/rank/progress.py", "harness/rank/kept.py")


def opening(path: Path, root: Path = ROOT, elsewhere: Collection[tuple[str, str]] = ELSEWHERE) -> list[str]:
    """Functions of a module that open or read a file by themselves."""
    name = str(path.relative_to(root))
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    return sorted(
        {
            f"{name}: {function.name}"
            for function in functions
            for call in ast.walk(function)
            if isinstance(call, ast.Call) and _called(call.func) in READS and not _is_run_dir(call.func)
            if (name, function.name) not in elsewhere
        }
    )


def _called(function: ast.expr) -> str:
    """Name of what is called; of functions of harness.schema.reading, none."""
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) and function.id not in ("read_text", "read_bytes") else ""


def _is_run_dir(function: ast.expr) -> bool:
    """RunDir.open opens no file by itself."""
    return isinstance(function, ast.Attribute) and ast.unparse(function) == "RunDir.open"


def modules() -> list[Path]:
    found = [(ROOT / place) for place in READERS]
    return sorted(path for place in found for path in (place.rglob("*.py") if place.is_dir() else [place]))


def test_one_function_opens_the_files_of_a_run() -> None:
    assert [line for path in modules() for line in opening(path)] == []


def test_every_exception_is_needed() -> None:
    found = {line for path in modules() for line in opening(path, elsewhere=())}
    assert {f"{path}: {function}" for path, function in ELSEWHERE} == found


@pytest.mark.parametrize(
    "line", ["path.read_text()", "pq.read_table(path)", "path.open()", "open(path)", "pd.read_parquet(path)"]
)
def test_another_reader_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "module.py").write_text(f"def reader(path):\n    return {line}\n")
    assert opening(tmp_path / "module.py", tmp_path) == ["module.py: reader"]
