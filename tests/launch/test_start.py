"""A current directory that holds packages of the names harness and launch: what is run is reducebench's own, or nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

import harness.__main__ as root
from launch.__main__ import main
from launch.torchrun import START
from tests.launch.standins import set_rank
from tests.running import ENVIRONMENT, HANG_S, ROOT

SMOKE = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[sum]", "iterations=1", "warm_up=0")
FOUND = """
import harness.schema, launch.task, sys
import my_model
print(harness.schema.__file__, launch.task.__file__, my_model.NAME, *sys.argv[1:])
"""

MODEL = """
import torch


def make():
    return torch.nn.Linear(4, 2)


def data():
    return torch.randn(16, 4), torch.randn(16, 2)
"""
WORKLOAD = """
mine:
  _target_: harness.axes.workload.base.Workload
  model: {_target_: my_model.make, _partial_: true}
  loss: {_target_: torch.nn.MSELoss, _partial_: true}
  data: {_target_: my_model.data, _partial_: true}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: both packages, each of which leaves a file when it is imported, and the user's own module."""
    for name in ("harness", "launch"):
        (tmp_path / name).mkdir()
        left = tmp_path / f"imported_{name}"
        (tmp_path / name / "__init__.py").write_text(f"from pathlib import Path\nPath({str(left)!r}).touch()\n")
    (tmp_path / "my_model.py").write_text("NAME = 'own'\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(here: Path) -> list[str]:
    """Foreign packages that were imported."""
    return sorted(path.name for path in here.glob("imported_*"))


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """An interpreter that has reducebench installed, in the current directory."""
    command, environment = [sys.executable, *arguments], {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_ranks_find_reducebench_beside_it_and_the_users_module_in_the_current_directory(here: Path) -> None:
    (here / "look.py").write_text(FOUND)
    done = python(START, "look", "an argument")
    assert done.stdout.split() == [
        *(str(ROOT / "harness/schema/__init__.py"), str(ROOT / "launch/task.py"), "own"),
        *("an", "argument"),
    ], done.stderr
    assert imported(here) == []


def test_the_path_is_the_one_of_python_m(here: Path) -> None:
    (here / "shown.py").write_text("import sys; print(sys.path)\n")
    assert python(START, "shown").stdout == python("-m", "shown").stdout


@pytest.mark.skipif(sys.version_info < (3, 11), reason="-P is of Python 3.11")
def test_without_the_current_directory_on_the_path_as_the_user_asked(here: Path) -> None:
    assert "No module named my_model" in python("-P", START, "my_model").stderr
    done = python("-P", START, "harness.report", "--help")
    assert done.returncode == 0, done.stderr
    assert imported(here) == []


def test_the_console_script_plans_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMOKE, "dry_run=true"]) == 0
    assert f"{START} harness.rank RUN_DIR" in capsys.readouterr().out


WITH_BOTH = "import runpy, launch; launch.__path__.append(r'{}'); runpy.run_module('launch.__main__', run_name='__main__')"


@pytest.mark.parametrize("both", [False, True])
def test_python_m_launch_says_which_package_it_would_take(here: Path, both: bool) -> None:
    """An installation in place finds its own __main__ also in a foreign folder `launch` without one."""
    if not both:
        (here / "launch" / "__init__.py").unlink()
    done = python("-c", WITH_BOTH.format(ROOT / "launch"), "--version") if both else python("-m", "launch", "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"reducebench: {here / 'harness'} is another package of the name harness, and is found first")
    assert done.stderr.count("\n") == 1


def test_the_library_raises_where_another_package_is_imported(here: Path) -> None:
    (here / "launch" / "__init__.py").unlink()
    assert "ImportError: reducebench: " in python("-c", "import launch.job").stderr


@pytest.mark.parametrize("arguments", [("--help",), SMOKE])
def test_the_users_torchrun_says_which_package_it_would_take(
    here: Path, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch.distributed import HashStore

    set_rank(monkeypatch, 0, 1)
    monkeypatch.setattr(root, "open_store", lambda: (HashStore(), 0, 1))
    monkeypatch.delitem(sys.modules, "launch")
    monkeypatch.setattr(sys, "path", [str(here), *sys.path])
    assert root.main([*arguments]) == 2
    assert f"{here / 'launch' / '__init__.py'} is another package of the name launch" in capsys.readouterr().err
    assert imported(here) == []


def test_several_hosts_are_not_started_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMOKE, "launch=torchrun_nodes", "launch.hosts=[a,b]", f"results_dir={here / 'results'}"]) == 2
    said = f"{here / 'harness' / '__init__.py'}: other hosts would run it in place of reducebench's harness"
    assert said in capsys.readouterr().err
    assert not (here / "results").exists()


@pytest.mark.full
def test_a_run_there_measures_with_reducebench(here: Path) -> None:
    (here / "my_model.py").write_text(MODEL)
    (here / "conf" / "workload").mkdir(parents=True)
    (here / "conf" / "workload" / "mine.yaml").write_text(WORKLOAD)
    script = "import sys; sys.path[0] = sys.argv.pop(1); from launch.__main__ import main; sys.exit(main(sys.argv[1:]))"
    asked = (*SMOKE[:1], *SMOKE[2:], "workload=[mine]", "--config-dir=conf", f"results_dir={here / 'results'}")
    done = python("-c", script, str(ROOT), *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert imported(here) == []
