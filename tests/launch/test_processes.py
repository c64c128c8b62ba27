"""Launches that are struck or ended in ways that tests/chaos does not know; each has a light twin in test_supervise.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.report.frame import load_run
from harness.schema.run_dir import RunDir
from tests.running import (
    BEGUN_S,
    ENDED_S,
    ENVIRONMENT,
    HANG_S,
    ORPHANS_S,
    ROOT,
    is_rank,
    launch,
    processes_of,
    start_launch,
    wait_until,
)

LONG = (
    "workload=[mlp_digits]",
    "normalization=[global_mean,rank_mean]",
    "sync=[none,barrier]",
    "iterations=60",
    "name=cut",
    "restarts=0",
    "reduction=[sum,mean,none,one_by_one]",
)
pytestmark = pytest.mark.full


def test_nothing_outlives_a_torchrun_killed_before_the_ranks_report(tmp_path: Path) -> None:
    process = start_launch(*LONG, f"results_dir={tmp_path}")
    try:
        assert wait_until(lambda: any(is_rank(line) for line in processes_of(tmp_path).values()), BEGUN_S)
        torchrun = next(pid for pid, line in processes_of(tmp_path).items() if " launch.agent " in line)
        os.kill(torchrun, signal.SIGKILL)
        output, _ = process.communicate(timeout=ENDED_S)
        assert process.returncode == 1
        assert "0 of 16 cases are finished" in output
        assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_rank_does_not_outlive_the_launcher(tmp_path: Path) -> None:
    process = start_launch(*LONG, f"results_dir={tmp_path}")
    try:
        assert wait_until(lambda: bool(list(tmp_path.glob("cut/*/cases/*.parquet"))), BEGUN_S), "no case finished"
        os.kill(RunDir(tmp_path / "cut" / "latest").ranks.statuses()[1].pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "ended by SIGTERM" in output
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S), processes_of(tmp_path)


def test_a_terminal_sees_the_progress(tmp_path: Path) -> None:
    command = f"python -m launch {' '.join(LONG)} results_dir={tmp_path} iterations=300 reduction=[sum]"
    path = f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"  # type: ignore[attr-defined]
    environment = {**os.environ, "PATH": path, "TERM": "xterm", "COLUMNS": "160"}
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], env=environment, capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "0/4" in done.stdout
    assert "mlp_digits.sum." in done.stdout


CRASHING = """
import ctypes
from harness.axes.sync.none import NoneSync

libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)


class CrashingSync(NoneSync):
    "Aborts the process that imported it, on its way out."
"""


def test_a_library_that_crashes_on_its_way_out_spoils_no_finished_run(tmp_path: Path) -> None:
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "crashing.yaml").write_text("crashing: {_target_: crashing.CrashingSync}\n")
    (tmp_path / "crashing.py").write_text(CRASHING)
    ours = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    crash = subprocess.run([sys.executable, "-c", "import crashing"], cwd=tmp_path, env=ours, capture_output=True)
    assert crash.returncode == -signal.SIGABRT, "the premise"
    done = launch("--config-dir", str(tmp_path), "experiment=smoke", "sync=[crashing]", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr


def test_a_signal_in_a_later_launch_ends_the_run_and_keeps_what_is_there(tmp_path: Path) -> None:
    process = start_launch(*LONG, "reduction=[sum]", "launches=3", f"results_dir={tmp_path}")
    try:
        assert wait_until(lambda: bool(list(tmp_path.glob("cut/*/cases/*.launch1.parquet"))), BEGUN_S), "no case of launch 1"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=ENDED_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "SIGINT" in output or "launches have not begun" in output
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)
    run = load_run(tmp_path / "cut" / "latest")
    assert len(run.cases) == 4, "the first launch is whole"
    assert {int(launch) for launch in run.launched.launch} == {0, 1}
    assert any(name.endswith(".launch2") for name in run.missing)
