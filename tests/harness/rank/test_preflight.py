"""What is refused before anything is measured, and how it is said."""

import os
import socket
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
import torch

from harness.axes.aggregation.coalesced import CoalescedAggregation
from harness.rank.activity import Activity
from harness.rank.guard import Guard
from harness.rank.lifeline import Answer, Doing, Lifeline, find_address, watched
from harness.rank.preflight import allow_sockets, check_interfaces
from harness.rank.process_group import choose_device, ranks_per_node
from harness.rank.session import Order, run_session, silent
from harness.rank.whereabouts import Place
from harness.schema.context import Context
from harness.schema.rank_state import ANSWERS, DEAD, SILENT, RankState
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.worlds.pool import Pool


@pytest.fixture(scope="module", params=[2])
def ranks(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def told(worlds: Pool, ranks: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = worlds.run(ranks, "tests.worlds.preflight:refusals")
    return found


def test_a_fit_world_is_not_refused(told: dict[str, list[str]]) -> None:
    assert told["nothing"] == ["", ""]


def test_unlike_versions_are_told_with_who_has_what(told: dict[str, list[str]]) -> None:
    first, second = told["versions"]
    assert first == second
    lines = first.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == lines[2].split()[0] == "torch"
    host = socket.gethostname()
    assert lines[1].endswith(f"rank 0 on {host}")
    assert "1.13.0" in lines[2]
    assert lines[2].endswith(f"rank 1 on {host}")


def test_unlike_commits_are_told(told: dict[str, list[str]]) -> None:
    assert told["commit"][0] == told["commit"][1]
    assert "0000 with changes" not in told["commit"][0]
    assert "1 with changes" in told["commit"][0]


def test_two_ranks_on_one_gpu_are_named(told: dict[str, list[str]]) -> None:
    assert told["shared"][0] == told["shared"][1]
    assert told["shared"][0].startswith(f"ranks 0-1 on {socket.gethostname()} share GPU GPU-1")


def test_a_wrong_sum_is_refused_everywhere(told: dict[str, list[str]]) -> None:
    assert told["sum"][0] == told["sum"][1]
    assert "all_reduce of 4096 whole numbers went wrong: rank " in told["sum"][0]
    assert told["sum"][0].count("WrongResultError") == 2


def test_who_never_comes_is_named(told: dict[str, list[str]]) -> None:
    assert told["absent"] == ["not here after rendezvous_s=3: rank 2"] * 2


def test_what_a_lifeline_finds() -> None:
    """A listener that never answers is what a stopped process is. A broken link needs two hosts: tests/test_chaos.py."""
    asking, answering = Lifeline.open(0, "127.0.0.1"), Lifeline.open(1, "127.0.0.1")
    doing = Doing("local_gradient", 1.5, place="all_reduce at model.py:7 in forward", collective=True)
    answering.doing = lambda: doing
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        addresses = [f"127.0.0.1:{listening.getsockname()[1]}" for listening in (silent, gone)]
        gone.close()
        asking.know([asking.address, answering.address, *addresses])
        assert asking.ask() == {1: Answer(ANSWERS, doing), 2: Answer(SILENT), 3: Answer(DEAD)}


def test_an_answer_is_read_whole_however_long_the_place_is() -> None:
    asking, answering = Lifeline.open(0, "127.0.0.1"), Lifeline.open(1, "127.0.0.1")
    answering.doing = lambda: Doing("forward", 1.5, place="é" * 400)
    asking.know([asking.address, answering.address])
    assert asking.ask() == {1: Answer(ANSWERS, Doing("forward", 1.5, place="é" * 100))}


def test_a_port_that_another_rank_has_now_is_no_answer() -> None:
    asking, other = Lifeline.open(0, "127.0.0.1"), Lifeline.open(2, "127.0.0.1")
    asking.know([asking.address, other.address])
    assert asking.ask() == {1: Answer(DEAD)}


def test_where_a_rank_is_found() -> None:
    """The first host may know itself by an address that leads nowhere from another one."""
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_WORLD_SIZE": "2"}
    assert find_address({**here, "WORLD_SIZE": "2"}) == ("127.0.0.1", "127.0.0.1")
    assert find_address({**here, "WORLD_SIZE": "4"}) == ("127.0.0.1", "0.0.0.0")


@dataclass
class Asked:
    """A rank that has been in a phase since long ago."""

    phase: str
    since: float = 0.0

    def enter(self, phase: str) -> None:
        """Note it."""
        self.phase = phase


class JoinedError(Exception):
    """The ranks would come together now."""


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(compose_config([f"results_dir={tmp_path}"], nproc_per_node=1), datetime.now())


class Answering:
    """A lifeline whose others say this."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.doing = dict(enumerate(answers, 1)), None

    def ask(self) -> dict[int, Answer]:
        return self.answers


AWAY = (False, 0.0)
WAITS = (False, 99.0)
PLACE = "all_reduce at model.py:7 in forward"


@pytest.mark.parametrize(
    ("phase", "waiting", "answer", "lost"),
    [
        ("aggregate", AWAY, Answer(ANSWERS, Doing("aggregate", 99.0)), {}),
        ("aggregate", AWAY, Answer(ANSWERS, Doing("compare", 99.0)), {}),
        ("aggregate", AWAY, Answer(ANSWERS, Doing("backward", 1.0)), {}),
        ("aggregate", AWAY, Answer(ANSWERS, Doing("backward", 99.0)), {"1": "stuck"}),
        ("backward", AWAY, Answer(ANSWERS, Doing("forward", 99.0)), {}),
        ("compare", AWAY, Answer(SILENT), {"1": "silent"}),
        ("forward", AWAY, Answer(DEAD), {"1": "dead"}),
        ("clip", WAITS, Answer(ANSWERS, Doing("clip", 99.0)), {"1": "stuck"}),
        ("clip", WAITS, Answer(ANSWERS, Doing("clip", 99.0, waits=True)), {}),
        ("compare", WAITS, Answer(ANSWERS, Doing("compare", 99.0)), {}),
        ("aggregate", WAITS, Answer(ANSWERS, Doing("aggregate", 99.0)), {"1": "stuck"}),
        ("aggregate", WAITS, Answer(ANSWERS, Doing("aggregate", 14.0)), {}),
        ("forward", WAITS, Answer(ANSWERS, Doing("failed", 99.0)), {}),
        ("assemble", WAITS, Answer(ANSWERS, Doing("assemble", 99.0)), {"1": "stuck"}),
        ("assemble", (False, 1.0), Answer(ANSWERS, Doing("assemble", 99.0)), {}),
        ("assemble", AWAY, Answer(ANSWERS, Doing("assemble", 99.0)), {}),
        ("assemble", WAITS, Answer(ANSWERS, Doing("assemble", 999.0, busy=True)), {}),
        ("assemble", (False, 999.0), Answer(ANSWERS, Doing("assemble", 999.0, busy=True)), {"1": "stuck"}),
        ("resume", WAITS, Answer(ANSWERS, Doing("resume", 99.0)), {}),
        ("aggregate", AWAY, Answer(ANSWERS, Doing("forward", 99.0, place=PLACE, collective=True, stands_s=14.0)), {}),
        (
            "aggregate",
            AWAY,
            Answer(ANSWERS, Doing("forward", 99.0, place=PLACE, collective=True, stands_s=99.0)),
            {"1": "stuck"},
        ),
        ("assemble", WAITS, Answer(ANSWERS, Doing("assemble", 99.0, place=PLACE, collective=True, stands_s=14.0)), {}),
    ],
)
def test_whom_a_guard_gives_up(phase: str, waiting: tuple[bool, float], answer: Answer, lost: dict[str, str]) -> None:
    given_up: list[tuple[dict[str, str], dict[str, str]]] = []
    guard = Guard(lambda why, lost, places: given_up.append((lost, places)), Asked(phase))
    line = Answering(answer)
    guard.miss(line, 10.0)  # type: ignore[arg-type]
    guard.heed(lambda: waiting)
    guard._ask(line)  # type: ignore[arg-type]
    places = {rank: answer.doing.place for rank, how in lost.items() if how == "stuck"}
    assert given_up == ([(lost, places)] if lost else [])


def test_no_rank_is_given_up_while_another_one_is_at_work_on_what_both_do() -> None:
    """It may wait for the other's lock on a file."""
    waits, works = Answer(ANSWERS, Doing("assemble", 99.0)), Answer(ANSWERS, Doing("assemble", 99.0, busy=True))
    given_up: list[dict[str, str]] = []
    guard = Guard(lambda why, lost, places: given_up.append(lost), Asked("assemble"))
    guard.heed(lambda: WAITS)
    for line in (Answering(waits, works), Answering(waits)):
        guard.miss(line, 10.0)  # type: ignore[arg-type]
        guard._ask(line)  # type: ignore[arg-type]
    assert given_up == [{"1": "stuck"}]


def test_a_rank_says_how_long_it_has_stood_in_a_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(lambda: None, Asked("forward"))
    here, elsewhere = (Place("model.py:7 in forward", "all_reduce", ((1, line),)) for line in (2, 3))
    guard._standstill = Still(here, 7.0)  # type: ignore[assignment]
    for place, seconds in ((here, 7.0), (elsewhere, 0.0), (Place(key=here.key), 0.0)):
        monkeypatch.setattr("harness.rank.guard.place_now", lambda place=place: place)
        assert guard.doing().stands_s == seconds


def test_computing_reading_and_writing_is_activity_and_waiting_is_none(tmp_path: Path) -> None:
    def burn() -> None:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass

    for work, busy in (
        (burn, True),
        (lambda: (tmp_path / "data").write_bytes(bytes(2**20)), True),
        (lambda: time.sleep(0.3), False),
    ):
        activity = Activity(60.0)
        activity.look()
        work()
        activity.look()
        assert activity.busy == busy


@pytest.mark.parametrize(
    ("phase", "waiting", "asks"),
    [
        ("ask", AWAY, False),
        ("ask", (False, 1.0), False),
        ("backward", AWAY, False),
        ("aggregate", AWAY, True),
        ("ask", WAITS, True),
    ],
)
def test_only_a_rank_that_waits_asks_more_than_once_a_deadline(phase: str, waiting: tuple[bool, float], asks: bool) -> None:
    guard = Guard(lambda: None, Asked(phase))
    guard.miss(Answering(), 300.0)  # type: ignore[arg-type]
    guard.heed(lambda: waiting)
    guard.state.since = time.monotonic() - 290.0
    assert guard._waits_long(), "for the first time"
    guard._asked = time.monotonic() - 6.0
    assert guard._waits_long() == asks


def test_the_main_thread_is_looked_at_seldom_in_work_of_its_own() -> None:
    for phase, times in (("ask", 1), ("forward", 3)):
        guard, looks = Guard(lambda: None, Asked(phase)), list[int]()
        guard._standstill = SimpleNamespace(look=lambda looks=looks: looks.append(1))  # type: ignore[assignment]
        for _ in range(3):
            guard._look()
        assert len(looks) == times, phase


def test_a_rank_that_waits_in_a_collective_of_its_own_says_where_the_others_are() -> None:
    given_up: list[tuple[str, str]] = []
    guard = Guard(lambda why, words: given_up.append((why, words)), Asked("forward"))
    line = Answering(
        Answer(ANSWERS, Doing("aggregate", 20.0, waits=True)), Answer(ANSWERS, Doing("assemble", 3.0, place="a.py:1 in f"))
    )
    guard.miss(line, 10.0)  # type: ignore[arg-type]
    place = Place("model.py:7 in forward", "all_reduce", ((1, 2),))
    for seconds, left in ((14.0, 0), (16.0, 1)):
        guard._standstill = Still(place, seconds)  # type: ignore[assignment]
        guard._asked = time.monotonic()
        guard._watch_others(line)  # type: ignore[arg-type]
        assert len(given_up) == left
    assert given_up == [
        (
            "waited",
            "has waited 16 s in all_reduce at model.py:7 in forward (deadline_s=10); "
            "rank 1 waits for the others in phase aggregate; rank 2 is in phase assemble, at a.py:1 in f",
        )
    ]


@dataclass
class Still:
    """A main thread that does not move."""

    place: Place
    seconds: float

    def look(self) -> Place:
        return self.place


@pytest.mark.parametrize("size", [1, 2, 32, 33, 1000, 4096])
def test_everybody_is_asked_by_somebody(size: int) -> None:
    asked = [watched(rank, size) for rank in range(size)]
    assert all(rank not in others for rank, others in enumerate(asked))
    assert {other for others in asked for other in others} == (set(range(size)) if size > 1 else set())
    assert max(map(len, asked)) <= (size - 1 if size <= 32 else 26)


def test_a_rank_may_have_as_many_sockets_as_there_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.setrlimit", lambda which, limits: given.append(limits))
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 4096))
    allow_sockets(16)
    allow_sockets(1000)
    assert given == [(3064, 4096)]
    with pytest.raises(RefusedError, match="about 12352 files and sockets open, and may have 4096"):
        allow_sockets(4096)


def test_an_interface_that_is_not_there_is_refused_with_those_that_are() -> None:
    existing = [name for _, name in socket.if_nameindex()]
    with pytest.raises(RefusedError) as refused:
        check_interfaces(nccl=False, named={"GLOO_SOCKET_IFNAME": f"{existing[0]},eth77"})
    said = (
        f"{socket.gethostname()} has no such network interface; it has {', '.join(existing)}; try +env.GLOO_SOCKET_IFNAME=NAME"
    )
    assert str(refused.value) == f"GLOO_SOCKET_IFNAME=eth77: {said}"
    check_interfaces(nccl=False, named={"GLOO_SOCKET_IFNAME": existing[0], "NCCL_SOCKET_IFNAME": "eth77"})


def test_interfaces_are_listed_only_where_one_is_named_and_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[int] = []

    def no_netlink() -> list[tuple[int, str]]:
        listed.append(1)
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("socket.if_nameindex", no_netlink)
    check_interfaces(nccl=True, named={})
    check_interfaces(nccl=False, named={"NCCL_SOCKET_IFNAME": "ib0"})
    assert listed == []
    check_interfaces(nccl=False, named={"GLOO_SOCKET_IFNAME": "eth0"})
    assert listed == [1]


@pytest.mark.parametrize(("device", "refused"), [("cpu", False), ("auto", True)])
def test_interfaces_of_nccl_matter_only_where_it_is_used(
    monkeypatch: pytest.MonkeyPatch, run_dir: RunDir, device: str, refused: bool
) -> None:
    """A GPU node with NCCL_SOCKET_IFNAME set for the whole cluster."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    for name, value in (("LOCAL_RANK", "0"), ("NCCL_SOCKET_IFNAME", "ib77"), ("GLOO_SOCKET_IFNAME", "")):
        monkeypatch.setenv(name, value)
    config = replace(run_dir.config(), device=device)
    monkeypatch.setattr(run_dir, "config", lambda: config)

    def join() -> NoReturn:
        raise JoinedError

    with pytest.raises(RefusedError if refused else JoinedError):
        run_session(run_dir, join, cast(RankState, Asked("")), cast(Guard, None), silent, Order())


@pytest.mark.parametrize(
    ("given", "fits"), [("{}", True), ("={}", True), ("^eth77", True), ("eth77", False), ("=eth77", False)]
)
def test_nccl_takes_beginnings_of_interfaces_and_whole_names_and_exclusions(given: str, fits: bool) -> None:
    named = {"NCCL_SOCKET_IFNAME": given.format(socket.if_nameindex()[0][1])}
    if fits:
        check_interfaces(nccl=True, named=named)
    else:
        with pytest.raises(RefusedError, match="has no such network interface; it has "):
            check_interfaces(nccl=True, named=named)


def test_nodes_with_unlike_numbers_of_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    uneven = SimpleNamespace(size=3, all_gather=lambda own: [torch.tensor(number) for number in (2, 2, 1)])
    with pytest.raises(RefusedError, match="the nodes have 1, 2 ranks: expected as many on each node"):
        ranks_per_node(uneven)  # type: ignore[arg-type]
    even = SimpleNamespace(size=4, all_gather=lambda own: [own] * 4)
    assert ranks_per_node(even) == 2  # type: ignore[arg-type]


def test_a_lost_device_ends_every_rank_after_the_case_that_failed_has_its_row(worlds: Pool, ranks: int) -> None:
    """The case fails with its own error; a new group, which no rank could make, is not tried before its row is written."""
    said = "after this failure every call of CUDA fails, or waits for ever, in the process of a rank"
    assert worlds.run(ranks, "tests.worlds.preflight:lost_device") == [[said, "kept"]] * ranks


def test_a_run_on_the_cpu_hides_the_gpus_of_its_host(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's PowerSGD hook waits for a GPU where it sees one, and raises for a tensor on the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0,1")
    choose_device(replace(run_dir.config(), device="auto"), 0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    choose_device(replace(run_dir.config(), device="cpu"), 0)
    assert [os.environ[f"{layer}_VISIBLE_DEVICES"] for layer in ("CUDA", "HIP", "ROCR")] == ["", "", ""]


def test_coalesced_is_skipped_for_cuda_tensors_over_gloo() -> None:
    facts = {"world_size": 2, "spans_ranks": True, "averages": False, "in_backward": False, "coupling": ()}
    contexts = {
        (device, backend): Context(device=device, backend=backend, shard_sizes=(1, 1), denominators=(1.0, 1.0), **facts)  # type: ignore[arg-type]
        for device, backend in (("cpu", "gloo"), ("cuda", "gloo"), ("cuda", "nccl"))
    }
    reasons = {where: CoalescedAggregation().unsupported(context) for where, context in contexts.items()}
    assert reasons == {
        ("cpu", "gloo"): None,
        ("cuda", "gloo"): "gloo has no coalesced all-reduce of CUDA tensors",
        ("cuda", "nccl"): None,
    }
