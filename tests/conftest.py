"""Runs that many tests read, worlds that stay up, and the turns that tests take on two cores."""

import os
import re
from collections.abc import Generator, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from harness.report.frame import Run, load_run
from harness.report.render import show
from tests.rehearsal import REHEARSED, note_skipped, skipped_lines
from tests.running import ENVIRONMENT, HIDDEN, launch, torchrun
from tests.same_tables import assert_tables_equal
from tests.sharing import group_by_fixture, turn
from tests.worlds.pool import Pool, WorldError

_SHOWN = 2000
"""Characters of a rank's log in an error."""
# The same examples everywhere, and no opinion on how long they take: a machine that is busy for a second fails no test.
settings.register_profile("reducebench", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("reducebench")


_GPU_ALONE = re.compile(r"gpu( and (not )?\w+)*")


def selects_only_gpu(expression: str) -> bool:
    """Return True if `-m expression` certainly selects no test of the CPU."""
    return _GPU_ALONE.fullmatch(expression) is not None


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from every test but those of `-m gpu`: the others expect that the defaults take the CPU and gloo."""
    if REHEARSED or not selects_only_gpu(config.option.markexpr):
        os.environ.update(HIDDEN)
        ENVIRONMENT.update(HIDDEN)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked gpu, with their reason, where torch sees no CUDA device; tell xdist which tests share something."""
    if config.pluginmanager.hasplugin("xdist"):
        group_by_fixture(items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not REHEARSED:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device; -m gpu shows the GPUs to the tests"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    note_skipped(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the lines that a rehearsal skipped."""
    reports = [report for group in ("passed", "failed") for report in terminalreporter.getreports(group)]
    lines = skipped_lines(reports)
    if lines:
        terminalreporter.section(f"rehearsal: {len(lines)} lines need a CUDA object, and were skipped")
        terminalreporter.write("".join(f"skipped line: {line}\n" for line in lines))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run no other test beside a test marked alone."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    shared = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    with turn(shared, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def worlds() -> Iterator[Pool]:
    """Worlds of ranks that stay up; a test that uses them is parametrized by `ranks`."""
    with Pool() as pool:
        yield pool


class Measure(Protocol):
    """Run a matrix in a world of the pool, and read it."""

    def __call__(self, *overrides: str, ranks: int = 2) -> Run: ...


@pytest.fixture(scope="session")
def measure(worlds: Pool, tmp_path_factory: pytest.TempPathFactory) -> Measure:
    def measured(*overrides: str, ranks: int = 2) -> Run:
        results = tmp_path_factory.mktemp("measured")
        try:
            path = worlds.run(ranks, "tests.worlds.session:measure", [*overrides, f"results_dir={results}"])
        except WorldError as error:
            for log in results.glob("*/*/ranks/*.log"):
                error.add_note(f"the end of {log.name}:\n{log.read_text()[-_SHOWN:]}")
            raise
        run = load_run(path)
        assert_tables_equal(run.path, run)
        return run

    return measured


@dataclass(frozen=True)
class Finished:
    """A run that has ended, and what its command printed."""

    run: Run
    output: str


def _finished(results: Path, name: str, output: str) -> Finished:
    run = load_run(results / name / "latest")
    assert_tables_equal(run.path, run)
    return Finished(run, output)


def shown(run: Run) -> Finished:
    """Render the report of a run that was measured in the pool, as its launcher would."""
    with patch.dict(os.environ, COLUMNS="200"), redirect_stdout(StringIO()) as output:
        assert not show([run.path])
    return Finished(load_run(run.path), output.getvalue())


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
def every_mode(measure: Measure) -> Finished:
    """The default matrix, with fewer iterations."""
    return shown(measure("iterations=2", "warm_up=1", "sync=[none,device]"))


@pytest.fixture(scope="session")
def reduction_modes(measure: Measure) -> Finished:
    """The experiment of that name, with fewer steps of training."""
    return shown(measure("experiment=reduction_modes", "iterations=1", "drift.steps=2"))


@pytest.fixture(scope="session")
def gradient_sums(measure: Measure) -> Finished:
    """The experiment of that name, with fewer trials."""
    few = [f"probe.staleness.{key}" for key in ("trials=20", "controls=20")]
    return shown(measure("experiment=gradient_sums", "iterations=2", "drift.steps=2", *few))


@pytest.fixture(scope="session")
def unequal_derivatives(measure: Measure) -> Finished:
    """The experiment of that name, with fewer repetitions."""
    few = [f"probe.repeatability.{key}" for key in ("runs=20", "orders=20")]
    return shown(measure("experiment=unequal_derivatives", "iterations=2", *few))


@pytest.fixture(scope="session")
def aggregation(measure: Measure) -> Finished:
    """The experiment of that name, smaller."""
    return shown(measure("experiment=aggregation", "iterations=1", "global_batch_size=16"))
