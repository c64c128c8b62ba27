"""Processes of a world, and how they end: light ones in place of torchrun and its ranks, and the guard of a real rank."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch import ending, supervise
from launch.deaths import deaths
from launch.job import configure
from launch.patience import Ended, Limits
from launch.supervise import Start, run_world
from launch.verdict import REFUSAL, judge
from tests.launch.standins import gone_pid
from tests.running import BEGUN_S, ENDED_S, ENVIRONMENT, ORPHANS_S, ROOT, processes_of, wait_until

RANK = """
import os, signal, socket, sys, time
from pathlib import Path
from harness.schema.rank_state import RankState, RankStatus, this_machine

_, _, ranks, rank, deed = sys.argv
state = RankState(Path(ranks, f"{rank}.state"), RankStatus(int(rank), os.getpid(), socket.gethostname(), this_machine()))
state.update(case="a case")
state.enter("forward")
if deed == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if deed == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
if deed == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "refuses":
    signal.signal(signal.SIGTERM, lambda *_: (state.update(ended="terminated"), os._exit(1)))
    state.update(ended="refused", words="no such data")
if deed == "done":
    state.update(ended="done")
    sys.exit()
time.sleep(900)
"""
AGENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)", *sys.argv[1:]], start_new_session=True)
time.sleep(900)
"""
"""Starts a rank that does not report, in a session of its own."""
NEVER = Limits(ranks=2, arrival_s=BEGUN_S, stopped_s=BEGUN_S)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    asked = ["experiment=smoke", "torchrun.nproc_per_node=2", f"results_dir={tmp_path}"]
    yield RunDir.create(configure(asked, None), datetime.now())
    for pid in processes_of(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start(run_dir: RunDir, *deeds: str) -> list[Start]:
    """Start a process for each rank."""
    environment = {**ENVIRONMENT, LAUNCHER_PID: str(os.getpid()), "PYTHONPATH": str(ROOT)}
    ranks = str(run_dir.ranks.path)
    commands = [[sys.executable, "-c", RANK, "harness.rank", ranks, str(rank), deed] for rank, deed in enumerate(deeds)]
    return [Start(command, environment, f"torchrun{rank}") for rank, command in enumerate(commands)]


class Looks:
    """Looks at a world; does something once, when the ranks have come so far, and fails where the world does not end."""

    def __init__(self, run_dir: RunDir, far: Callable[[], bool], deed: Callable[[], object]) -> None:
        self.run_dir, self.far, self.deed = run_dir, far, deed
        self.done, self.left = False, int(ENDED_S / supervise.POLL_S)

    def __call__(self) -> None:
        if not self.done and self.far():
            self.done = True
            self.deed()
        self.left -= self.done
        assert self.left > 0, "the world does not end"


def nothing() -> None:
    """A deed that changes nothing."""


def ran(run_dir: RunDir, starts: Sequence[Start], looks: Looks, limits: Limits = NEVER, received: Sequence[str] = ()) -> Ended:
    """Run the world to its end; fails where a process of it is left."""
    ended = run_world(starts, run_dir, "world", looks, limits, received)
    assert not [line for line in processes_of(run_dir.path).values() if "time.sleep(900)" in line]
    return ended


def both_work(run_dir: RunDir) -> Callable[[], bool]:
    return lambda: [status.phase for status in run_dir.ranks.statuses()] == ["forward", "forward"]


def test_a_world_that_ends_well(run_dir: RunDir) -> None:
    ended = ran(run_dir, start(run_dir, "done", "done"), Looks(run_dir, lambda: True, nothing))
    assert (ended.failed, ended.stopped, ended.late) == ({}, [], False)
    assert run_dir.ranks.ordered_end() == ""


def test_a_signal_ends_every_process(run_dir: RunDir) -> None:
    received = list[str]()
    looks = Looks(run_dir, both_work(run_dir), lambda: received.append("SIGINT"))
    ended = ran(run_dir, start(run_dir, "works", "works"), looks, received=received)
    assert ended.failed == {}, "they did not end by themselves"
    assert run_dir.ranks.ordered_end() == "world", "hosts far away are told"


def test_own_ranks_skips_a_process_that_has_exited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.pids", lambda: [gone_pid()])
    assert ending.own_ranks() == set()


def test_ranks_that_are_stopped_or_deaf_do_not_outlive_the_launcher(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "PATIENCE_S", 1.0)
    received = list[str]()
    looks = Looks(run_dir, both_work(run_dir), lambda: received.append("SIGTERM"))
    ran(run_dir, start(run_dir, "stopped", "deaf"), looks, received=received)


def test_a_stopped_rank_times_out_and_is_named(run_dir: RunDir) -> None:
    looks = Looks(run_dir, both_work(run_dir), nothing)
    ended = ran(run_dir, start(run_dir, "works", "stopped"), looks, Limits(2, BEGUN_S, 0.5))
    assert ended.stopped == [1]
    (death,) = deaths(run_dir, ended.failed)
    assert (death.rank, death.case, death.phase) == (1, "a case", "forward")
    assert "does not answer: it is stopped, or hangs" in str(death)


def test_a_world_in_which_every_rank_is_stopped_is_noticed(run_dir: RunDir) -> None:
    looks = Looks(run_dir, both_work(run_dir), nothing)
    ended = ran(run_dir, start(run_dir, "stopped", "stopped"), looks, Limits(2, BEGUN_S, 0.5))
    assert ended.stopped, "at least the first that stood still for so long"
    assert all("it is stopped, or hangs" in str(death) for death in deaths(run_dir, ended.failed))


def test_a_killed_rank_is_named_and_the_other_one_ended(run_dir: RunDir) -> None:
    ended = ran(run_dir, start(run_dir, "works", "killed"), Looks(run_dir, both_work(run_dir), nothing))
    assert ended.failed == {"torchrun1": -signal.SIGKILL}
    (death,) = deaths(run_dir, ended.failed)
    assert (death.rank, death.case) == (1, "a case")
    assert "died without a word" in str(death)


def test_a_rank_that_has_not_reported_is_ended_with_its_torchrun(run_dir: RunDir) -> None:
    command = [sys.executable, "-c", AGENT, "harness.rank", str(run_dir.path)]
    agent = Start(command, {**ENVIRONMENT, LAUNCHER_PID: str(os.getpid())}, "torchrun")

    def ranks() -> list[int]:
        return [pid for pid in ending.own_ranks() if "Popen" not in processes_of(run_dir.path).get(pid, "Popen")]

    def kill() -> None:
        parent = next(pid for pid, line in processes_of(run_dir.path).items() if "Popen" in line)
        os.kill(parent, signal.SIGKILL)

    ended = ran(run_dir, [agent], Looks(run_dir, lambda: bool(ranks()), kill))
    assert ended.failed == {"torchrun": -signal.SIGKILL}
    assert str(deaths(run_dir, ended.failed)[0]).startswith("torchrun was ended by SIGKILL")


def test_a_program_that_is_not_there_is_refused_and_the_started_ones_end(run_dir: RunDir) -> None:
    starts = [*start(run_dir, "works"), Start(["no-such-program"], ENVIRONMENT, "other")]
    with pytest.raises(RefusedError, match="there is no program no-such-program"):
        run_world(starts, run_dir, "world", nothing, NEVER, [])
    assert wait_until(lambda: not processes_of(run_dir.path), ORPHANS_S)


GUARDED = """
import os, sys, time
from types import SimpleNamespace
from harness.rank.guard import Guard

def leave(why, **lost):
    print(why, flush=True)
    os._exit(0)

Guard(leave, SimpleNamespace(phase="", since=time.monotonic())).start(int(sys.argv[1]))
print("guarded", flush=True)
time.sleep(900)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.fixture
def launcher() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that a rank takes for its launcher."""
    with subprocess.Popen(["sleep", "900"]) as process:
        yield process
        process.kill()


def guarded(launcher: int, *parent: str) -> "subprocess.Popen[str]":
    """Start a process with a rank's guard, below a parent where one is given."""
    command = [sys.executable, *parent, "-c", GUARDED, str(launcher)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    assert process.stdout.readline() == "guarded\n"
    return process


def last_words(process: "subprocess.Popen[str]") -> str:
    """Reason that the guard gives when it ends its rank."""
    try:
        return process.communicate(timeout=ENDED_S)[0].strip()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_rank_does_not_outlive_a_killed_launcher(launcher: "subprocess.Popen[bytes]") -> None:
    """Although its parent, torchrun, lives."""
    rank = guarded(launcher.pid)
    launcher.kill()
    launcher.wait()
    assert last_words(rank) == "orphaned"


def test_a_rank_does_not_outlive_a_killed_parent(launcher: "subprocess.Popen[bytes]") -> None:
    parent = guarded(launcher.pid, "-c", PARENT)
    parent.kill()
    assert last_words(parent) == "orphaned"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_is_told_to_end_says_so(launcher: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    rank = guarded(launcher.pid)
    rank.send_signal(number)
    assert last_words(rank) == "terminated"


LINGERING = """
import os, sys, time
from harness.rank.__main__ import report_in
from harness.schema.run_dir import RunDir

state, _ = report_in(RunDir.open(sys.argv[1]), 0)
state.enter("assemble")
state.update(ended=sys.argv[2], words="its words")
print("ended", flush=True)
time.sleep(900)
"""
"""A rank whose exit takes a while, as with a slow `atexit` function of the workload."""


@pytest.mark.parametrize(("ended", "status"), [("refused", 2), ("error", 1), ("done", 1)])
def test_the_first_ending_of_a_rank_counts_although_it_is_terminated_on_its_way_out(
    run_dir: RunDir, ended: str, status: int
) -> None:
    command = [sys.executable, "-c", LINGERING, str(run_dir.path), ended]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as rank:
        assert rank.stdout
        assert rank.stdout.readline() == "ended\n"
        rank.terminate()
        assert rank.wait(ENDED_S) == status
    (left,) = run_dir.ranks.statuses()
    assert (left.ended, left.words, left.phase) == (ended, "its words", "assemble")


def test_a_refusal_stays_one_although_the_launcher_ends_its_slow_rank(run_dir: RunDir) -> None:
    looks = Looks(run_dir, lambda: True, nothing)
    starts = start(run_dir, "refuses", "refuses")
    ended = ran(run_dir, starts, looks)
    verdict = judge(run_dir, ended, deaths(run_dir, ended.failed))
    assert (verdict.status, verdict.lines) == (REFUSAL, ("no such data",))


CRASHING = """
import ctypes

libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)
"""


def test_a_library_that_crashes_on_its_way_out_does_not_change_a_rank_s_status() -> None:
    ends = {"": -signal.SIGABRT, "from harness.rank.__main__ import leave; leave(0)": 0}
    for end, status in ends.items():
        done = subprocess.run([sys.executable, "-c", f"{CRASHING}\n{end}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
        assert done.returncode == status, done.stderr
