"""`make test` on a machine with GPUs uses none of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.devices import visible_gpus
from tests.conftest import selects_only_gpu
from tests.gpu.standin import sitecustomize as standin
from tests.gpu.watch import Use, changes
from tests.running import ENVIRONMENT, HANG_S, HIDDEN, ROOT
from tests.worlds.pool import Pool

STANDIN = Path(standin.__file__).parent
WAYS = [
    "test_hidden_gpus.py::test_this_process_and_those_it_starts_see_no_gpu",
    "test_hidden_gpus.py::test_ranks_of_a_shared_world_see_no_gpu",
    "test_main_job.py::test_torchrun_and_launch_leave_equal_tables",
    "launch/test_several_hosts.py::test_two_hosts_find_what_one_finds",
    "launch/test_several_hosts.py::test_slurm",
]
"""Tests in process, in a shared world, by the launcher, by the user's torchrun, on two hosts, and in a batch job."""


def test_this_process_and_those_it_starts_see_no_gpu() -> None:
    for environment in (os.environ, ENVIRONMENT):
        assert {name: environment.get(name) for name in HIDDEN} == HIDDEN
    assert torch.cuda.device_count() == 0


def test_ranks_of_a_shared_world_see_no_gpu(worlds: Pool) -> None:
    assert worlds.run(2, "tests.worlds.hidden:visible") == [HIDDEN, 0]


@pytest.mark.parametrize("expression", ["gpu", "gpu and not full", "gpu and full"])
def test_gpus_are_shown_to_gpu_tests(expression: str) -> None:
    assert selects_only_gpu(expression)


@pytest.mark.parametrize(
    "expression", ["", "not full", "not gpu", "gpu or full", "full and gpu or alone", "gpu and full or alone"]
)
def test_gpus_are_hidden_where_an_expression_could_select_other_tests(expression: str) -> None:
    assert not selects_only_gpu(expression)


@pytest.mark.parametrize("build", ["cuda", "hip"])
def test_the_launcher_counts_no_hidden_gpu(build: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher finds a device file and asks a stand-in of torch, in a process of its own."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "torch").mkdir()
    source = Path(standin.__file__).read_text().partition("\nsys.meta_path")[0]
    (tmp_path / "torch" / "__init__.py").write_text(f"{source}\ncuda = ModuleType('cuda')\ncount_devices(cuda)\n")
    monkeypatch.setattr("launch.devices._ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("STANDIN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STANDIN_BUILD", build)
    assert visible_gpus() == 0
    for name in HIDDEN:
        monkeypatch.delenv(name)
    assert visible_gpus() == standin.GPUS, "the stand-in counts devices that are not hidden"


@pytest.mark.full
@pytest.mark.parametrize("build", ["cuda", "hip"])
def test_every_way_into_torch_hides_the_gpus(build: str, tmp_path: Path) -> None:
    """Run tests where the stand-in counts eight GPUs: no process of them sees one."""
    log = tmp_path / "log"
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in HIDDEN}
    environment |= {"PYTHONPATH": f"{STANDIN}:{ROOT}", "STANDIN_LOG": str(log), "STANDIN_BUILD": build}
    control = [sys.executable, "-c", "from launch.devices import visible_gpus; print(visible_gpus())"]
    shown = subprocess.run(control, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S, check=True)
    assert shown.stdout.strip() == str(standin.GPUS)
    assert log.read_text(), "the stand-in notes who sees a GPU"
    log.unlink()
    chosen = [f"tests/{name}" for name in WAYS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inner'}", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert not log.exists(), log.read_text()


def test_a_gpu_that_is_used_is_noticed() -> None:
    idle = [Use(10, frozenset({1})), Use(10, frozenset())]
    assert not list(changes(idle, idle))
    (line,) = changes(idle, [idle[0], Use(10, frozenset({7}))])
    assert line == "GPU 1 was used: 1 more compute processes"
    (line,) = changes(idle, [Use(2**30, frozenset({1})), idle[1]])
    assert line.startswith("GPU 0 was used: more memory")
