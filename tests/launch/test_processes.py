"""A run that is cut short: ended in time, right status, right words, no process left, and finished cases kept."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from harness.report.frame import load_run
from harness.schema.rank_state import RankStatus
from harness.schema.run_dir import RunDir
from tests.running import (
    BEGUN_S,
    ENDED_S,
    ENVIRONMENT,
    HANG_S,
    ORPHANS_S,
    ROOT,
    TORCHRUN,
    launch,
    processes_of,
    start_launch,
    torchrun,
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


class Running:
    """A launch that has finished a case and is at work on another one."""

    run_dir: RunDir

    def __init__(self, results: Path) -> None:
        self.results = results
        self.process = start_launch(*LONG, f"results_dir={results}")

    def wait_for_a_case(self) -> None:
        assert wait_until(lambda: bool(list(self.results.glob("cut/*/cases/*.parquet"))), BEGUN_S), "no case finished"
        self.run_dir = RunDir((self.results / "cut" / "latest").resolve())

    @property
    def ranks(self) -> list[RankStatus]:
        return self.run_dir.ranks.statuses()

    def torchrun_pid(self) -> int:
        return next(pid for pid, line in processes_of(self.results).items() if "torch.distributed.run" in line)

    def end(self) -> tuple[int, str]:
        """Exit status and output; fails when the launcher does not end, or leaves a process."""
        output, _ = self.process.communicate(timeout=ENDED_S)
        self.leaves_nothing()
        return self.process.returncode, output

    def leaves_nothing(self) -> None:
        assert wait_until(lambda: not processes_of(self.results), ORPHANS_S), processes_of(self.results)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path)
    try:
        started.wait_for_a_case()
        yield started
    finally:
        for pid in processes_of(tmp_path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.process.kill()
        started.process.communicate()


def test_a_killed_rank_is_named_with_its_case(running: Running) -> None:
    victim = running.ranks[1]
    os.kill(victim.pid, signal.SIGKILL)
    status, output = running.end()
    assert status == 1
    assert f"rank 1 (pid {victim.pid} on {victim.host}) died without a word" in output
    assert ", in case mlp_digits." in output
    assert ", phase " in output
    assert "rank 0" not in output.split("reducebench: ")[1]
    run = load_run(running.run_dir.path)
    assert len(run.cases) + len(run.missing) == 16
    assert len(run.cases) >= 1
    assert (run.cases.status == "ok").all()
    assert len(run.samples_of(run.cases.case_id[0])) == 2 * 62 * 5
    assert "missing" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_alone_ends_everything(running: Running, number: signal.Signals) -> None:
    os.kill(running.process.pid, number)
    status, output = running.end()
    assert status == 1
    assert f"ended by {number.name}" in output
    assert "Traceback" not in output
    assert len(load_run(running.run_dir.path).cases) >= 1
    assert not running.run_dir.scratch(0).parent.exists()


def test_ctrl_c_in_a_terminal(running: Running) -> None:
    """The whole foreground group gets SIGINT."""
    os.killpg(running.process.pid, signal.SIGINT)
    status, output = running.end()
    assert (status, "Traceback" in output) == (1, False)


def test_nothing_outlives_a_killed_launcher(running: Running) -> None:
    running.process.kill()
    running.leaves_nothing()


def test_nothing_outlives_a_killed_torchrun(running: Running) -> None:
    os.kill(running.torchrun_pid(), signal.SIGKILL)
    status, _ = running.end()
    assert status == 1


def test_nothing_outlives_a_torchrun_killed_before_the_ranks_report(tmp_path: Path) -> None:
    process = start_launch(*LONG, f"results_dir={tmp_path}")
    try:
        assert wait_until(lambda: any("-u -m harness.rank" in line for line in processes_of(tmp_path).values()), BEGUN_S)
        torchrun = next(pid for pid, line in processes_of(tmp_path).items() if "torch.distributed.run" in line)
        os.kill(torchrun, signal.SIGKILL)
        output, _ = process.communicate(timeout=ENDED_S)
        assert process.returncode == 1
        assert "0 of 16 cases are finished" in output
        assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_rank_does_not_outlive_the_launcher(running: Running) -> None:
    os.kill(running.ranks[1].pid, signal.SIGSTOP)
    os.kill(running.process.pid, signal.SIGTERM)
    status, _ = running.end()
    assert status == 1


@pytest.fixture
def by_torchrun(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The user's own torchrun, in mid-run."""
    command = (*TORCHRUN, "--nproc-per-node=2", "-m", "harness", *LONG, f"results_dir={tmp_path}")
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert wait_until(lambda: bool(list(tmp_path.glob("cut/*/cases/*.parquet"))), BEGUN_S)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_rank_killed_under_the_users_torchrun(by_torchrun: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.kill(RunDir(tmp_path / "cut" / "latest").ranks.statuses()[1].pid, signal.SIGKILL)
    output, _ = by_torchrun.communicate(timeout=ENDED_S)
    assert by_torchrun.returncode == 1
    assert output.count("reducebench: rank 1 (pid") == 1
    assert "died without a word" in output
    assert ", in case mlp_digits." in output
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)


def test_ctrl_c_to_the_users_torchrun(by_torchrun: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.killpg(by_torchrun.pid, signal.SIGINT)
    output, _ = by_torchrun.communicate(timeout=ENDED_S)
    assert "of 16 cases are finished and kept" in output
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)


def test_output_that_is_no_terminal_holds_no_progress(running: Running) -> None:
    os.kill(running.process.pid, signal.SIGTERM)
    _, output = running.end()
    assert "\r" not in output
    assert "\x1b" not in output
    assert "case " not in output.split("$ ")[0]


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


FAILING = """
from harness.axes.sync.none import NoneSync


class FailingSync(NoneSync):
    "Fails on rank 1 when a case is made ready for the second time."

    made = 0

    def before_aggregate(self, group, device):
        self.made += 1
        if self.made == 2 and group.rank() == 1:
            raise RuntimeError("planted in the second round")
        return None
"""


def test_a_rank_that_fails_in_a_later_round_fails_its_case_alone(tmp_path: Path) -> None:
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "failing.yaml").write_text("failing: {_target_: failing.FailingSync}\n")
    (tmp_path / "failing.py").write_text(FAILING)
    rounds = ("order=interleaved", "rounds=3", "iterations=6", "until.relative=null")
    axes = ("workload=[mlp_digits]", "reduction=[mean]", "sync=[failing,none]")
    done = launch("--config-dir", str(tmp_path), *axes, *rounds, f"results_dir={tmp_path / 'results'}")
    assert done.returncode == 1
    cases = load_run(tmp_path / "results" / "default" / "latest").cases.set_index("sync")
    assert cases.status.to_dict() == {"failing": "failed", "none": "ok"}
    assert re.match(r"rank 1 on \S+, in phase [\w-]+: RuntimeError: planted in the second round", cases.reason["failing"])


@pytest.mark.parametrize("asked", [("launches=2",), ("--base", "--new", "sync=[barrier]"), ("--gate", "time=5%")])
def test_what_is_for_the_launcher_is_refused_under_the_users_torchrun(asked: tuple[str, ...], tmp_path: Path) -> None:
    done = torchrun(2, "-m", "harness", "experiment=smoke", f"results_dir={tmp_path / 'results'}", *asked)
    assert done.returncode == 1
    assert "here the ranks run already" in done.stderr
    assert not (tmp_path / "results").exists()
