"""A closed pipe, or a closed descriptor, changes no exit status and shows no traceback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.report.__main__ import main as report
from launch.__main__ import main as launch
from tests.running import ENVIRONMENT, HANG_S, ROOT
from tests.running import launch as launch_to_its_end
from tests.synthetic import make_run, steps


@pytest.fixture
def nobody_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output and error are pipes whose reader has gone."""
    streams = []
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams.append(os.fdopen(writer, "w", buffering=1))
        monkeypatch.setattr(sys, name, streams[-1])
    yield
    for stream in streams:
        stream.close()


def two_runs(folder: Path) -> list[str]:
    """The second is twice as slow; as many launches as an interval needs."""
    few = ("workload=[mlp_digits]", "reduction=[sum]", "launches=4")
    sides = {"base": 0.01, "new": 0.02}
    return [str(make_run(folder / side, steps(median, iterations=5), *few).path) for side, median in sides.items()]


@pytest.mark.usefixtures("nobody_reads")
def test_a_closed_pipe_changes_no_exit_status(tmp_path: Path) -> None:
    base, new = two_runs(tmp_path)
    assert report(["compare", base, new]) == 0
    assert report(["compare", base, new, "--gate", "time=5%"]) == 1
    assert report(["compare", base, str(tmp_path / "none")]) == 2
    assert report(["check", new, "--max-step-ms", "1"]) == 1
    assert report(["show", base]) == 0
    assert (Path(base) / "report" / "report.md").is_file()


@pytest.mark.usefixtures("nobody_reads")
def test_a_closed_pipe_keeps_no_run_from_its_end() -> None:
    """All that is printed before the ranks are started is printed into it."""
    assert launch(["dry_run=true", "torchrun.nproc_per_node=2"]) == 0
    assert launch(["no_such_key=1"]) == 2


def test_closed_descriptors(tmp_path: Path) -> None:
    """Closed standard streams (`>&- 2>&-`): no opened file gets their descriptors, and so no printed text."""
    base, _ = two_runs(tmp_path)
    command = f"exec '{sys.executable}' -m harness.report show '{base}' <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=ENVIRONMENT, timeout=HANG_S, check=False)
    assert done.returncode == 0
    assert (Path(base) / "report" / "report.md").read_text().startswith("# default")


@pytest.mark.full
def test_a_run_measures_without_a_reader(tmp_path: Path) -> None:
    """`python -m launch | head -1`."""
    command = f"'{sys.executable}' -m launch experiment=smoke results_dir={tmp_path} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=ENVIRONMENT, timeout=HANG_S, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "smoke" / "latest" / "report" / "report.md").is_file()
    assert launch_to_its_end(f"resume={tmp_path / 'smoke' / 'latest'}", "dry_run=true").stdout.startswith("nothing to do")
