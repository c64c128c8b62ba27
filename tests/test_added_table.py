"""Adding a table touches two files: its declaration, and the place that makes its rows."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.schema import declare
from harness.schema.declare import CASES, column, table
from harness.schema.matrix import expand_cases
from harness.schema.run_dir import HELD
from tests import run_directory
from tests.running import ENVIRONMENT
from tests.same_tables import assert_tables_equal
from tests.synthetic import make_run, steps

ROOT = Path(__file__).parent.parent
SMALL = ("workload=[mlp_digits]", "reduction=[sum]", "global_batch_size=8", "iterations=1", "warm_up=0")
LINE = "| `elements` | int64 |  | Elements of a parameter. |"
DECLARED = '''

@table("shapes", of=CASES, a_row="parameter of a measured case", beside=_LAUNCH, key=("case_id", "parameter"))
@dataclass(frozen=True)
class Shape:
    """A row of `shapes`."""

    case_id: CaseId
    parameter: Annotated[str, column("Name of the parameter.")]
    elements: Annotated[int, column("Elements of a parameter.", least=0)]
'''
BEFORE = '        self.writer.write("findings", case.case_id, found)\n'
MADE = """        shapes = [Shape(case.case_id, name, gradient.numel()) for name, gradient in measured.gradient]
        self.writer.write("shapes", case.case_id, shapes)
"""
EDITS = {
    "harness/schema/record.py": lambda text: text + DECLARED,
    "harness/rank/casework.py": lambda text: text.replace(BEFORE, MADE + BEFORE).replace(
        "from harness.schema.record import", "from harness.schema.record import Shape\nfrom harness.schema.record import", 1
    ),
}
"""File to its edit."""
CHECK = """
import sys
from pathlib import Path
import harness
from harness.report.frame import load_run
from tests.run_directory import PAGE
from tests.same_tables import assert_tables_equal
here = Path.cwd()
assert Path(harness.__file__).is_relative_to(here) and PAGE.is_relative_to(here)
run = load_run(here / "results" / "default" / "latest")
assert_tables_equal(run.path, run)
print(len(run.cases), run.shapes.elements.sum() == run.cases.num_parameters.sum(), sorted(run.shapes.parameter)[0])
"""


@dataclass(frozen=True)
class Shape:
    """A row of a table that the run does not have."""

    case_id: Annotated[str, column("Case.")]
    elements: Annotated[int, column("Elements of a parameter.", least=0)]


def test_what_is_declared_has_files_a_frame_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        table("shapes", of=CASES, a_row="parameter", beside={"launch": declare.TABLES["cases"].columns["launch"]})(Shape)
        monkeypatch.setitem(HELD, CASES, (*HELD[CASES], "shapes"))
        run_dir = make_run(tmp_path, steps(0.01, iterations=3), *SMALL)
        (case,) = expand_cases(run_dir.config())
        Writer(run_dir).write("shapes", case.case_id, [Shape(case.case_id, 7), Shape(case.case_id, 9)])
        run = load_run(run_dir.path)
        assert run.shapes.to_dict("list") == {"case_id": [case.case_id] * 2, "launch": [0, 0], "elements": [7, 9]}
        assert_tables_equal(run_dir.path, run)
        assert LINE in run_directory.page(run_directory.PAGE.read_text())
        run_dir.forget(CASES, case.case_id)
        assert not any((run_dir.path / "shapes").iterdir())
    finally:
        declare._declared.pop("shapes", None)


def copied(folder: Path) -> Path:
    """The tree, as far as a run and the documentation need it."""
    here = folder / "tree"
    for name in ("harness", "launch", "conf"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    (here / "tests").mkdir()
    (here / "docs").mkdir()
    for name in ("tests/__init__.py", "tests/run_directory.py", "tests/same_tables.py", "docs/run_directory.md"):
        shutil.copy(ROOT / name, here / name)
    return here


def ran(here: Path, *arguments: str) -> str:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(here), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(here: Path) -> dict[str, bytes]:
    return {str(path.relative_to(here)): path.read_bytes() for path in here.rglob("*") if path.is_file()}


@pytest.mark.full
def test_a_table_takes_two_files(tmp_path: Path) -> None:
    here = copied(tmp_path)
    before = contents(here)
    for name, edit in EDITS.items():
        (here / name).write_text(edit((here / name).read_text()))
    touched = {name for name, content in contents(here).items() if before.get(name) != content}
    assert touched == set(EDITS) and len(touched) == 2
    ran(here, "-m", "tests.run_directory")
    assert LINE in (here / "docs" / "run_directory.md").read_text()
    ran(here, "-m", "launch", *SMALL, "torchrun.nproc_per_node=1", f"results_dir={here / 'results'}")
    assert ran(here, "-c", CHECK).split()[:2] == ["1", "True"]
