"""Progress of a run: rank, launcher and report give one answer, and no file is opened twice."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.probes.control import Control
from harness.rank.progress import take_up
from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.schema import reading, tables
from harness.schema.matrix import expand_cases
from harness.schema.progress import DAMAGED, FINISHED, MISSING, read_progress
from harness.schema.record import FAILED, OK, SKIPPED, Asked
from harness.schema.run_dir import RunDir
from launch.patience import Ended
from launch.resume import configure_resume, undone_launches
from launch.verdict import judge
from tests.running import ENVIRONMENT, HANG_S, ROOT
from tests.synthetic import make_run, steps

REDUCTIONS = ("sum", "mean", "none", "micro_batch", "one_by_one")
PROBES = ("float_sums", "summation_order", "repeatability", "several_losses", "averaging")


def change(run_dir: RunDir, case: str, launch: int = 0, **columns: str) -> None:
    """Write other values into the row of a case."""
    file = run_dir.case_file("cases", case, launch)
    rows = pq.read_table(file)
    for name, value in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array([value]))
    pq.write_table(rows, file)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of two launches that has every state, in cases and in probes. Only read."""
    asked = ("workload=[mlp_digits]", f"reduction=[{','.join(REDUCTIONS)}]", f"probe=[{','.join(PROBES)}]", "launches=2")
    run_dir = make_run(tmp_path_factory.mktemp("progress"), steps(0.01, iterations=3), *asked)
    cases = [case.case_id for case in expand_cases(run_dir.config())]
    run_dir.case_file("samples", cases[0]).write_bytes(b"not whole")
    run_dir.forget("cases", cases[1])
    change(run_dir, cases[2], aggregation="flat")
    change(run_dir, cases[3], status=FAILED, reason="planted")
    run_dir.case_file("memory", cases[4], launch=1).unlink()
    writer = Writer(run_dir)
    writer.write_probe(PROBES[0], [Asked(PROBES[0], "a", OK), Asked(PROBES[0], "b", SKIPPED)], [])
    writer.write_probe(PROBES[1], [Asked(PROBES[1], "a", OK), Asked(PROBES[1], "b", FAILED)], [])
    writer.write_probe(PROBES[2], [Asked(PROBES[2], "a", OK)], [])
    run_dir.case_file("observations", PROBES[2]).unlink()
    for part in ("a", "b"):
        writer.write_part(PROBES[3], [Asked(PROBES[3], part, OK)], [])
    run_dir.case_file("collectives", f"{PROBES[3]}.part1").write_bytes(b"not whole")
    return run_dir


STATES = [DAMAGED, MISSING, DAMAGED, FAILED, FINISHED], [FINISHED, FINISHED, FINISHED, FINISHED, DAMAGED]
"""Of the cases, in the first launch and in the second."""
OF_PROBES = [FINISHED, FAILED, DAMAGED, MISSING, MISSING]


def named(run_dir: RunDir, launch: int, *states: str) -> set[str]:
    """Cases in one of these states, as planted."""
    cases = expand_cases(run_dir.config())
    return {case.case_id for case, state in zip(cases, STATES[launch], strict=True) if state in states}


def test_every_state_is_found_with_its_files(run_dir: RunDir) -> None:
    progress = read_progress(run_dir, run_dir.config())
    assert [[entry.state for entry in progress.cases(launch)] for launch in (0, 1)] == list(STATES)
    assert [entry.state for entry in progress.entries if entry.table == "probes"] == OF_PROBES
    assert [entry.answers for entry in progress.entries if entry.table == "probes"] == [0, 0, 0, 1, 0]
    files = [(path.parent.name, reason.partition(":")[0]) for entry in progress.of(DAMAGED) for path, reason in entry.damaged]
    assert [folder for folder, _ in files] == ["samples", "cases", "observations", "memory"]
    assert [reason for _, reason in files][1:] == ["column aggregation", "missing", "missing"]


def test_the_report_counts_the_same(run_dir: RunDir) -> None:
    run, progress = load_run(run_dir.path), read_progress(run_dir, run_dir.config())
    assert run.missing == tuple(entry.label for entry in progress.unfinished)
    assert len(run.damaged) == 4
    for launch in (0, 1):
        loaded = run.launched[run.launched.launch == launch]
        assert set(loaded.case_id) == named(run_dir, launch, FINISHED, FAILED)
        assert set(loaded.case_id[loaded.status == FAILED]) == named(run_dir, launch, FAILED)
    assert set(run.probes.probe) == {PROBES[0], PROBES[1], PROBES[3]}, "the last with the answers of its whole part"


def test_the_launcher_counts_the_same(run_dir: RunDir) -> None:
    going = configure_resume([f"resume={run_dir.path}"])
    kept = f", but for 1 answer of {PROBES[3]}, which stand"
    assert going.said.splitlines()[0] == f"6 of 15 cases and probes stand; 2 failed and 7 missing ones are done now{kept}"
    assert len(going.said.splitlines()) == 5
    assert going.launches == undone_launches(run_dir, run_dir.config()) == (0, 1)
    for launch, words in enumerate(("4 of 10 cases and probes", "4 of 5 cases")):
        verdict = judge(run_dir, Ended(signal="SIGINT"), [], launch)
        assert verdict.lines[0].startswith(f"ended by SIGINT: {words} are finished and kept in launch {launch}")
        assert not verdict.complete


@pytest.mark.parametrize(("launch", "retry"), [(0, False), (0, True), (1, True)])
def test_a_rank_measures_again_what_the_others_count_as_undone(
    run_dir: RunDir, tmp_path: Path, launch: int, retry: bool
) -> None:
    run_dir = RunDir(shutil.copytree(run_dir.path, tmp_path / "run"))
    done = (FINISHED,) if retry else (FINISHED, FAILED)
    left, again = named(run_dir, launch, *done), take_up(run_dir, run_dir.config(), launch, Control(None, 0, 1), retry=retry)
    probes = set() if launch else {name for name, state in zip(PROBES, OF_PROBES, strict=True) if state in done}
    assert (set(again.cases), again.probes) == (left, probes)
    assert run_dir.listed("cases", launch) == left, "rows of the others are gone"
    assert len(run_dir.parts(PROBES[1])) == (retry and not launch), "answers of a probe that failed are kept"


def test_a_verdict_does_not_count_a_damaged_case(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), "workload=[mlp_digits]", "reduction=[sum,mean]")
    run_dir.case_file("samples", sorted(run_dir.listed())[0]).write_bytes(b"not whole")
    assert judge(run_dir, Ended(signal="SIGINT"), []).lines == ("ended by SIGINT: 1 of 2 cases are finished and kept",)


@pytest.mark.parametrize("reader", [load_run, lambda path: configure_resume([f"resume={path}"])], ids=["report", "launcher"])
def test_no_table_is_opened_twice(run_dir: RunDir, reader: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Counter[Path]()

    def count(path: Path, folders: int = 0) -> BinaryIO:
        opened[path] += 1
        return real(path, folders)

    real = reading.open_file
    monkeypatch.setattr(tables, "open_file", count)
    reader(run_dir.path)
    assert {path.parent.name for path in opened} >= {"cases", "samples", "probes", "observations"}
    assert set(opened.values()) == {1}


def in_a_process(run_dir: RunDir, code: str) -> list[str]:
    """Run code in an interpreter of its own, with `run_dir`; return its output in words."""
    code = f"import sys; from harness.schema.run_dir import RunDir; run_dir = RunDir(sys.argv[1]); {code}"
    command = [sys.executable, "-c", code, str(run_dir.path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_launcher_imports_pyarrow_with_the_first_row_and_no_pandas(run_dir: RunDir) -> None:
    """A launch of which nothing is listed is not read."""
    seen = "print(*(name in sys.modules for name in ('pyarrow', 'pandas')))"
    begin = "from harness.schema.progress import read_progress; read_progress(run_dir, run_dir.config(), launch=7)"
    resume = "from launch.resume import configure_resume; configure_resume([f'resume={run_dir.path}'])"
    assert in_a_process(run_dir, f"import launch.job; {begin}; {seen}; {resume}; {seen}") == ["False", "False", "True", "False"]


@pytest.mark.full
def test_a_rank_that_goes_on_imports_no_pandas(run_dir: RunDir) -> None:
    imports = "from harness.rank.progress import take_up; from harness.probes.control import Control"
    call = "take_up(run_dir, run_dir.config(), 1, Control(None, 0, 1), retry=False).cases"
    assert in_a_process(run_dir, f"{imports}; print(len({call}), 'pandas' in sys.modules)") == ["4", "False"]


def test_failures_of_a_former_version_are_read_and_kept(tmp_path: Path) -> None:
    """schema_version 4 called failures.json ends.json."""
    run_dir = make_run(tmp_path, steps(0.01, iterations=3), "workload=[mlp_digits]", "reduction=[sum]")
    first, second = ({"at": at, "launch": 0, "culprits": [{"rank": 1}]} for at in ("first", "second"))
    (run_dir.path / "ends.json").write_text(json.dumps([first]))
    run = load_run(run_dir.path)
    assert run.failures == run.ends == (first,)
    assert not run.damaged
    run_dir.note_failure(second)
    assert json.loads((run_dir.path / "failures.json").read_text()) == run_dir.failures() == [first, second]
    (run_dir.path / "failures.json").unlink()
    (run_dir.path / "ends.json").write_text("[")
    assert list(load_run(run_dir.path).damaged) == ["ends.json"]
