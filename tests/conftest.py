"""Runs that many tests read: each starts its world once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from harness.report.frame import Run, load_run
from tests.running import launch, torchrun

# The same examples everywhere, and no opinion on how long they take: a machine that is busy for a second fails no test.
settings.register_profile("reducebench", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("reducebench")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu skip, with their reason, where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its command printed."""

    run: Run
    output: str


def _finished(results: Path, name: str, output: str) -> Finished:
    return Finished(load_run(results / name / "latest"), output)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m launch experiment=smoke`."""
    results = tmp_path_factory.mktemp("smoke")
    done = launch("experiment=smoke", f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return _finished(results, "smoke", done.stdout)


@pytest.fixture(scope="session")
def smoke_by_torchrun(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`torchrun --nproc-per-node=2 -m harness experiment=smoke`."""
    results = tmp_path_factory.mktemp("torchrun")
    done = torchrun(2, "-m", "harness", "experiment=smoke", f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return _finished(results, "smoke", done.stdout)


@pytest.fixture(scope="session")
def every_mode(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The default matrix, with fewer iterations."""
    results = tmp_path_factory.mktemp("every_mode")
    done = launch("iterations=2", "warm_up=1", "sync=[none,device]", f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return _finished(results, "default", done.stdout)


def _experiment(name: str, results: Path) -> Finished:
    done = launch(f"experiment={name}", f"results_dir={results}")
    assert done.returncode == 0, done.stderr
    return _finished(results, name, done.stdout)


@pytest.fixture(scope="session")
def reduction_modes(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m launch experiment=reduction_modes`."""
    return _experiment("reduction_modes", tmp_path_factory.mktemp("reduction_modes"))


@pytest.fixture(scope="session")
def gradient_sums(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m launch experiment=gradient_sums`."""
    return _experiment("gradient_sums", tmp_path_factory.mktemp("gradient_sums"))


@pytest.fixture(scope="session")
def unequal_derivatives(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m launch experiment=unequal_derivatives`."""
    return _experiment("unequal_derivatives", tmp_path_factory.mktemp("unequal_derivatives"))


@pytest.fixture(scope="session")
def aggregation(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`python -m launch experiment=aggregation`."""
    return _experiment("aggregation", tmp_path_factory.mktemp("aggregation"))
