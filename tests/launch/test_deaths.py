"""Who is blamed for a world that ended early, from what its ranks left in the run directory."""

import socket
from datetime import datetime
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError, TCPStore

from harness.schema.matrix import expand_cases
from harness.schema.rank_state import UNREACHABLE, RankState, RankStatus, this_machine
from harness.schema.run_dir import RunDir
from launch.deaths import deaths, note_stops
from launch.job import configure
from launch.last_words import end_of, last_words
from launch.patience import Ended
from launch.verdict import FAILURE, REFUSAL, judge
from tests.synthetic import steps, write_case

CASE = "mlp_digits.mean.global_mean.even.all_reduce.none.fp32"
ELSEWHERE = "another machine"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Of two ranks, with nothing done yet."""
    return RunDir.create(configure(["experiment=smoke", f"results_dir={tmp_path}"], None), datetime.now())


def left(
    run: RunDir,
    rank: int,
    ended: str,
    words: str = "",
    machine: str = "",
    places: dict[str, str] | None = None,
    **lost: str,
) -> None:
    """A rank's record as it is after its end."""
    status = RankStatus(rank, 7 + rank, f"node{rank}", machine or this_machine(), case=CASE)
    state = RankState(run.ranks.state(rank), status)
    state.enter("aggregate")
    found = {name.removeprefix("rank"): how for name, how in lost.items()}
    state.update(ended=ended, words=words, lost=found, places=places or {})


def test_torchrun_is_blamed_for_its_own_death_and_no_rank(run: RunDir) -> None:
    left(run, 0, "orphaned")
    left(run, 1, "orphaned")
    (death,) = deaths(run, {"torchrun": -9})
    assert (death.rank, death.case, death.host) == (None, "", socket.gethostname())
    assert str(death).startswith("torchrun was ended by SIGKILL")


def test_torchrun_is_blamed_although_a_rank_misses_its_store_before_it_misses_torchrun(run: RunDir) -> None:
    left(run, 0, "error", "DistNetworkError: failed to recv, got 0 bytes")
    left(run, 1, "orphaned")
    (death,) = deaths(run, {"torchrun": -9})
    assert str(death).startswith("torchrun was ended by SIGKILL")


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("how", ["error", "lost"])
def test_the_first_rank_that_failed_is_blamed_and_not_those_that_followed(run: RunDir, first: int, how: str) -> None:
    for rank in (first, 1 - first):
        left(run, rank, how, f"ValueError: of rank {rank}")
    (death,) = deaths(run, {"torchrun": 1})
    assert (death.rank, death.case, death.phase) == (first, CASE, "aggregate")
    assert f"ended with ValueError: of rank {first}, in case {CASE}" in str(death)


def test_a_rank_that_failed_is_blamed_and_not_the_torchrun_that_says_so(run: RunDir) -> None:
    left(run, 0, "error", "ValueError: the reason")
    left(run, 1, "terminated")
    (death,) = deaths(run, {"torchrun": 1})
    assert "ValueError: the reason" in str(death)


def test_a_connection_that_broke_is_blamed_and_no_rank(run: RunDir) -> None:
    left(run, 0, "terminated")
    left(run, 1, "terminated")
    assert [str(death) for death in deaths(run, {"node1": 255})] == ["node1 left with status 255; see ranks/node1.log"]


def test_a_rank_that_was_told_to_end_is_named_where_nothing_else_failed(run: RunDir) -> None:
    left(run, 1, "terminated")
    left(run, 0, "orphaned")
    (death,) = deaths(run, {"torchrun": 1})
    assert (death.rank, death.how[:14]) == (1, "was terminated")


def test_a_rank_that_its_launcher_had_to_kill_hides_no_error(run: RunDir) -> None:
    left(run, 0, "error", "ValueError: the reason")
    left(run, 1, "")
    (death,) = deaths(run)
    assert death.rank == 0
    assert "ValueError: the reason" in str(death)


def test_a_rank_of_another_host_without_last_words_is_gone(run: RunDir) -> None:
    left(run, 0, "lost", rank1="dead")
    left(run, 1, "", machine=ELSEWHERE)
    (death,) = deaths(run)
    assert death.rank == 1
    assert "gone without a word" in str(death)


def test_a_cut_cable_is_told_as_a_pair_although_the_other_host_can_write_nothing(run: RunDir) -> None:
    left(run, 0, "lost", rank1=UNREACHABLE)
    left(run, 1, "", machine=ELSEWHERE)
    (death,) = deaths(run)
    assert "rank 0 (pid 7 on node0) and rank 1 on node1 cannot reach each other" in str(death)


def test_who_refuses_is_no_culprit(run: RunDir) -> None:
    left(run, 0, "refused", "no such thing here")
    left(run, 1, "terminated")
    assert deaths(run, {"torchrun": 1}) == []
    verdict = judge(run, Ended(), [])
    assert (verdict.status, verdict.lines) == (
        REFUSAL,
        ("rank 0 on node0, in phase aggregate: no such thing here; rank 1 was in phase aggregate",),
    )


def test_a_rank_that_ended_before_it_was_stopped_keeps_its_ending(run: RunDir) -> None:
    left(run, 0, "refused", "no such thing here")
    left(run, 1, "")
    note_stops(run, run.ranks.statuses())
    kept = [(status.ended, status.words) for status in run.ranks.statuses()]
    assert kept == [("refused", "no such thing here"), ("stopped", "")]


def test_a_world_that_never_came_is_not_complete_although_every_row_is_there(run: RunDir) -> None:
    """As when a run goes on for a case that failed, and torchrun brings up no rank."""
    for case in expand_cases(run.config()):
        write_case(run, run.config(), case, 0, steps(0.01)(case, 0))
    verdict = judge(run, Ended(late=True), [])
    assert (verdict.status, verdict.complete) == (FAILURE, False)
    assert "ranks 0, 1 never reported within rendezvous_s=" in verdict.lines[0]


def test_the_host_that_never_came_is_named_and_no_other(tmp_path: Path) -> None:
    overrides = ["launch=torchrun_nodes", "launch.hosts=[a,b]", "torchrun.nproc_per_node=1", f"results_dir={tmp_path}"]
    run = RunDir.create(configure(overrides, None), datetime.now())
    run.ranks.note_node(0)
    lines = judge(run, Ended(late=True), []).lines
    assert lines[0].startswith("node 1 (b) never came within rendezvous_s=")
    assert not any("node 0" in line for line in lines)


def test_no_time_is_stated_that_has_not_passed(run: RunDir) -> None:
    (run.ranks.path / "torchrun.log").write_text("ImportError: no such library\n")
    (line, counted) = judge(run, Ended(late=False), []).lines
    said = "ranks 0, 1 never reported; ranks/torchrun.log ends: ImportError: no such library"
    assert line == f"{said}; see {run.ranks.path}"
    assert "are finished and kept" in counted


@pytest.fixture
def two_nodes(tmp_path: Path) -> RunDir:
    """Run directory of two hosts that have both reported."""
    overrides = ["launch=torchrun_nodes", "launch.hosts=[a,b]", "torchrun.nproc_per_node=1", f"results_dir={tmp_path}"]
    run = RunDir.create(configure(overrides, None), datetime.now())
    for node in (0, 1):
        run.ranks.note_node(node)
    return run


def test_a_taken_port_is_said_with_its_host_and_its_key(two_nodes: RunDir) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(DistNetworkError) as raised:
        TCPStore("127.0.0.1", taken.getsockname()[1], is_master=True)
    two_nodes.ranks.note_start("torchrun.0", ["torchrun"])
    with two_nodes.ranks.log("torchrun.0").open("a") as log:
        log.write(f'Traceback (most recent call last):\n  File "a.py"\ntorch.distributed.DistNetworkError: {raised.value}\n\n')
    (death,) = deaths(two_nodes, {"node0": 1})
    host = socket.gethostname()
    assert str(death).startswith(
        f"node0 left with status 1; ranks/torchrun.0.log on {host} ends: torch.distributed.DistNetworkError"
    )
    assert str(death).endswith("(launch.master_port=29400: another process listens there; try another port)")


def test_of_a_batch_job_the_torchrun_that_names_an_error_is_read(two_nodes: RunDir) -> None:
    for node, words in ((0, "warming up"), (1, "OSError: [Errno 30] Read-only file system: '1.log'")):
        two_nodes.ranks.log(f"torchrun.{node}").write_text(f"{words}\n")
    two_nodes.ranks.log("srun").write_text("srun: error: node1: task 1: Exited with exit code 1\n")
    (death,) = deaths(two_nodes, {"srun": 1})
    assert "ranks/torchrun.1.log on " in str(death)
    assert str(death).endswith("ends: OSError: [Errno 30] Read-only file system: '1.log'")


def test_an_earlier_worlds_error_is_not_repeated(two_nodes: RunDir) -> None:
    two_nodes.ranks.log("torchrun.0").write_text("RuntimeError: of an earlier world\n")
    two_nodes.ranks.note_start("torchrun.0", ["torchrun"])
    two_nodes.ranks.note_start("node0", ["ssh", "a"])
    with two_nodes.ranks.log("node0").open("a") as log:
        log.write("ssh: connect to host a port 22: Connection refused\n")
    (death,) = deaths(two_nodes, {"node0": 255})
    assert str(death) == (
        f"node0 left with status 255; ranks/node0.log on {socket.gethostname()} ends: "
        "ssh: connect to host a port 22: Connection refused"
    )


WHAT = "what():  [enforce fail at gloo/transport/tcp/pair.cc:467] op.preamble.length <= op.nbytes. 8 vs 4"
DUMP = """terminate called after throwing an instance of 'gloo::EnforceNotMet'
  what():  [enforce fail at gloo/transport/tcp/pair.cc:467] op.preamble.length <= op.nbytes. 8 vs 4
Fatal Python error: Aborted

Thread 0x00007f (most recent call first):
  File "threading.py", line 331 in wait

Extension modules: torch._C, numpy._core (total: 2)
"""


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["warm", "ValueError: a", "done", ""], "ValueError: a"),
        (["warm", "no error", ""], "no error"),
        (["torch.X.ChildFailedError: ", "=====", "  File "], ""),
        (DUMP.splitlines(), WHAT),
        (["DistNetworkError: EADDRINUSE", "RendezvousConnectionError: See inner exception"], "DistNetworkError: EADDRINUSE"),
    ],
)
def test_the_line_of_the_error_is_found(lines: list[str], words: str) -> None:
    assert last_words(lines) == words


def test_a_rank_that_went_on_after_an_error_did_not_end_with_it() -> None:
    assert end_of(["ValueError: of a case that failed", "the next case", ""]) == "the next case"
    assert end_of(["ValueError: of a case that failed", *DUMP.splitlines()]) == WHAT


def test_where_a_rank_waited_is_said_and_who_died_comes_first(run: RunDir) -> None:
    left(run, 0, "waited", "has waited 6 s in all_reduce at model.py:7 in forward (deadline_s=1); rank 1 waits for the others")
    left(run, 1, "terminated")
    (death,) = deaths(run, {"torchrun": 1})
    assert str(death).startswith("rank 0 (pid 7 on node0) has waited 6 s in all_reduce at model.py:7")
    assert (death.case, death.phase) == (CASE, "aggregate")
    left(run, 1, "died")
    assert [death.rank for death in deaths(run)] == [1]


def test_where_a_stuck_rank_stands_is_said(run: RunDir) -> None:
    left(run, 0, "")
    left(run, 1, "lost", places={"0": "model.py:7 in forward"}, rank0="stuck")
    (death,) = deaths(run)
    assert (death.rank, death.how.partition(", ")[0]) == (0, "answers")
    assert "it hangs at model.py:7 in forward, in case" in death.how
    assert "deadline_s" not in death.how


def test_a_rank_that_may_still_be_loading_is_said_with_what_to_try(run: RunDir) -> None:
    path = run.ranks.state(0)
    RankState(path, RankStatus(0, 7, "node0")).enter("assemble")
    left(run, 1, "lost", places={"0": "data.py:3 in load"}, rank0="stuck")
    (death,) = deaths(run)
    assert death.how.endswith("phase assemble; try a larger deadline_s if it is still loading data")


def test_a_rank_that_refuses_alone_is_said_with_where_the_others_were(run: RunDir) -> None:
    left(run, 0, "refused", "no such thing here")
    left(run, 1, "terminated")
    (line,) = judge(run, Ended(), []).lines
    assert line.endswith("no such thing here; rank 1 was in phase aggregate")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_to_the_launcher_is_named_and_no_rank(run: RunDir, name: str) -> None:
    left(run, 0, "terminated")
    left(run, 1, "terminated")
    verdict = judge(run, Ended(signal=name), deaths(run))
    total = len(expand_cases(run.config()))
    assert (verdict.status, verdict.stopped) == (FAILURE, True)
    assert verdict.lines == (f"ended by {name}: 0 of {total} cases are finished and kept",)
