"""`torchrun -m harness`: what rank 0 says, in this process, and whole runs of the user's own torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from torch.distributed import HashStore

import harness.__main__ as root
from harness.report.frame import load_run
from harness.schema.case import AXES, Case
from harness.schema.config import BenchmarkConfig
from harness.schema.record import FAILED
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.launch.standins import leave_state, ordinary, set_rank, write_launch
from tests.running import BEGUN_S, ENDED_S, ENVIRONMENT, ORPHANS_S, ROOT, TORCHRUN, processes_of, torchrun, wait_until

LONG = (
    *("name=cut", "restarts=0", "workload=[mlp_digits]", "normalization=[global_mean,rank_mean]", "sync=[none,barrier]"),
    *("iterations=60", "reduction=[sum,mean,none,one_by_one]"),
)
"""A run of 16 cases."""
Ranks = Callable[..., list[int]]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """Run the main function of each rank, one after the other, on a store of their own; return their statuses."""

    def run(*arguments: str, size: int = 2) -> list[int]:
        store, statuses = HashStore(), []
        for rank in range(size):
            set_rank(monkeypatch, rank, size)
            monkeypatch.setattr(root, "open_store", lambda rank=rank: (store, rank, size))
            statuses.append(root.main(arguments))
        return statuses

    return run


def test_harness_without_torchrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert root.main([]) == 2
    assert "torchrun" in capsys.readouterr().err


REFUSED = {
    "reduction=[nosuch]": "nosuch: no such option",
    "torchrun.nproc_per_node=3": "torchrun has started 2",
    "dry_run=true": "--dry-run",
    "--dry-run": "--dry-run are for python -m launch",
    "--resume somewhere": "here the ranks run already",
    "--world-sizes 1,2": "here the ranks run already",
    "launches=2": "here the ranks run already",
    "--base --new sync=[barrier]": "here the ranks run already",
    "--gate time=5%": "here the ranks run already",
    "--multirun": "here the ranks run already",
    "--cfg": "here the ranks run already",
    "resume=somewhere": "here the ranks run already",
    "launch=slurm": "here the ranks run already",
    "launch.master_port=29777": "here the ranks run already",
    "world_sizes=[1,2]": "here the ranks run already",
    "nccl_matrix.algorithms=[RING]": "which starts a world for each combination",
    "+env.OMP_PROC_BIND=close": "have read OMP_PROC_BIND when they imported torch",
    "+env.PYTORCH_CUDA_ALLOC_CONF=backend:native": "try export PYTORCH_CUDA_ALLOC_CONF=backend:native before torchrun",
}


@pytest.mark.parametrize("line", REFUSED)
def test_one_message_and_every_rank_ends(line: str, ranks: Ranks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    assert ranks("experiment=smoke", f"results_dir={results}", *line.split()) == [2, 2]
    told = capsys.readouterr().err
    assert told.count("reducebench: ") == 1
    assert REFUSED[line] in told
    assert not results.exists()


@pytest.mark.parametrize("here", [1, 2])
def test_uneven_nodes_are_refused_whichever_comes_first(
    here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_rank(monkeypatch, 0, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setattr(root, "open_store", lambda: (HashStore(), 0, 3))
    assert root.main(["experiment=smoke", f"results_dir={tmp_path}"]) == 2
    said = f"torchrun has started 3 ranks on 2 nodes, {here} of them on this one: expected as many on each node"
    assert said in capsys.readouterr().err


@pytest.mark.full
def test_one_message_under_torchrun(tmp_path: Path) -> None:
    done = torchrun(2, "-m", "harness", "reduction=[nosuch]", f"results_dir={tmp_path}")
    assert done.returncode == 1, "torchrun's own status"
    assert done.stderr.count("reducebench: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_variables_that_come_in_time_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    root._check_read({"OMP_PROC_BIND": "close", "NCCL_ALGO": "Ring", "CUDA_VISIBLE_DEVICES": "0", "GLOO_SOCKET_IFNAME": "lo"})


def test_help_answers_once(ranks: Ranks, capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks("--help", size=3) == [0, 0, 0]
    text = capsys.readouterr().out
    assert text.count("Axes, each a list of options") == 1
    assert all(f"\n  {axis} " in text for axis in AXES)


def _one_failed(config: BenchmarkConfig, case: Case) -> dict[str, Any]:
    return {"status": FAILED, "reason": "planted"} if case.reduction == "sum" else {}


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run of two ranks that has not begun."""
    overrides = ("workload=[mlp_digits]", "reduction=[sum,mean]", f"results_dir={tmp_path}")
    return RunDir.create(compose_config(overrides, nproc_per_node=2), datetime.now())


def measured(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, work: Callable[[BenchmarkConfig], int]) -> int:
    """Status of rank 0, where `work` replaces its session."""
    config = run_dir.config()
    monkeypatch.setattr(root, "redirect_output", lambda log: None)
    monkeypatch.setattr(root, "report_in", lambda run_dir, rank, last_act: (None, None))
    monkeypatch.setattr(root, "work", lambda *arguments: work(config))
    return root._measure_and_report(config, run_dir, HashStore(), 2)


@pytest.mark.parametrize(("outcomes", "status"), [(ordinary, 0), (_one_failed, 1)])
def test_a_failed_case_makes_the_status_1(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcomes: Any, status: int
) -> None:
    def work(config: BenchmarkConfig) -> int:
        write_launch(run_dir, config, 0, outcomes)
        return 0

    assert measured(run_dir, monkeypatch, work) == status
    assert ("planted" in capsys.readouterr().out) == bool(status)
    assert (run_dir.report / "report.md").is_file()


def test_who_ended_the_run_is_said_once(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: BenchmarkConfig) -> int:
        leave_state(run_dir, 0, "error", words="DistNetworkError: gone")
        leave_state(run_dir, 1, "", case="mlp_digits.sum")
        return 1

    assert measured(run_dir, monkeypatch, work) == 1
    told = capsys.readouterr().err
    assert told.count("reducebench: rank 1 (pid") == 1
    assert "died without a word, in case mlp_digits.sum, phase forward" in told
    assert "rank 0" not in told
    assert "0 of 2 cases are finished and kept" in told


def test_the_session_and_the_guard_do_not_both_speak(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    leave_state(run_dir, 1, "", case="mlp_digits.sum")
    words = root._LastWords(run_dir)
    speakers = [Thread(target=words.say, args=(sys.stderr,)) for _ in range(4)]
    for speaker in speakers:
        speaker.start()
    for speaker in speakers:
        speaker.join()
    assert capsys.readouterr().err.count("reducebench: rank 1 (pid") == 1


def test_the_guard_may_speak_while_the_session_ends(run_dir: RunDir, capfd: pytest.CaptureFixture[str]) -> None:
    """torchrun has sent SIGTERM to rank 0 a second ago, and its session may fail just then."""
    leave_state(run_dir, 1, "", case="mlp_digits.sum")
    with root._terminal() as terminal:
        pass
    root._LastWords(run_dir).say(terminal)
    assert capfd.readouterr().err.count("reducebench: rank 1 (pid") == 1


def test_rank_0_that_is_ended_before_its_report_says_how_to_get_it(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    write_launch(run_dir, run_dir.config())
    for rank in (0, 1):
        leave_state(run_dir, rank, "done")
    root._LastWords(run_dir).say(sys.stderr)
    assert f"the report is not written; try python -m harness.report show {run_dir.path}" in capsys.readouterr().err


@pytest.fixture
def by_torchrun(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """The user's own torchrun, in the middle of a run."""
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


@pytest.mark.full
def test_ctrl_c_to_the_users_torchrun(by_torchrun: "subprocess.Popen[str]", tmp_path: Path) -> None:
    os.killpg(by_torchrun.pid, signal.SIGINT)
    output, _ = by_torchrun.communicate(timeout=ENDED_S)
    assert "of 16 cases are finished and kept" in output
    assert wait_until(lambda: not processes_of(tmp_path), ORPHANS_S)


@pytest.mark.full
def test_four_ranks_of_torchrun_make_one_run(tmp_path: Path) -> None:
    overrides = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", f"results_dir={tmp_path}")
    done = torchrun(4, "-m", "harness", *overrides)
    assert done.returncode == 0, done.stderr
    run_dir, latest = sorted((tmp_path / "smoke").iterdir(), key=lambda path: path.is_symlink())
    assert latest.resolve() == run_dir
    run = load_run(run_dir)
    assert (run.environment["world_size"], set(run.samples["rank"])) == (4, {0, 1, 2, 3})
    assert len(run.environment["ranks"]) == 4
