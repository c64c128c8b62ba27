"""Adding an axis touches three files besides its options: counted in a copy of the tree."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.schema.matrix import expand_cases
from launch.compose import compose_config
from tests.running import ENVIRONMENT, HANG_S
from tests.scratch_axis import EDITS, LINE, copy

BEFORE = expand_cases(compose_config([part for part in LINE if "echo" not in part], nproc_per_node=1))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in the copy."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG_S)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the checks of tests/scratch_axis.py there."""
    program = f"import harness; assert harness.__file__.startswith({str(folder)!r}); from tests import scratch_axis as checks; "
    return run(folder, "-c", f"{program}checks.check_launcher({BEFORE[0].case_id!r}); checks.check_rank()")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    copy(folder, EDITS)
    return folder


def test_an_axis_is_added_by_three_files(added: Path) -> None:
    assert len(EDITS) == 3
    done = check(added)
    assert done.returncode == 0, done.stderr


LACKING = {
    "harness/schema/case.py": "KeyError: 'echo'",
    "conf/config.yaml": "No match in the defaults list",
    "harness/rank/rig.py": "rig.py) has a field for each axis",
}
"""File to the error where it was forgotten."""


@pytest.mark.full
@pytest.mark.parametrize("file", LACKING)
def test_a_forgotten_file_is_an_error(tmp_path: Path, file: str) -> None:
    copy(tmp_path, {name: edits for name, edits in EDITS.items() if name != file})
    done = check(tmp_path)
    assert done.returncode != 0 and LACKING[file] in done.stderr


@pytest.mark.full
def test_the_tests_of_axes_hold_for_an_added_one(added: Path) -> None:
    names = ("tests/test_architecture.py", "tests/launch/test_sweep_and_help.py", "tests/harness/rank/test_baselines.py")
    chosen = "(axes or axis or law or yaml or baseline or options) and not wheel"
    done = run(added, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *names)
    assert done.returncode == 0, done.stdout
