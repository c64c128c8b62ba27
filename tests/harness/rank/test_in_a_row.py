"""Several calls in a row: on the host, on a simulated device, and by a CUDA graph."""

from collections.abc import Iterator
from contextlib import closing
from math import isnan
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from harness.probes import hold
from harness.rank import clock, in_a_row, queued
from harness.rank.clock import Stopwatch
from harness.rank.in_a_row import ways
from harness.tensors import collectives
from tests.fake_cuda import FakeCuda, install

US = 1e-6


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(in_a_row, "_failed", [])
    yield install(monkeypatch, clock, queued, in_a_row)
    hold.cycles_per_s.cache_clear()


def world(cuda: FakeCuda, backend: str = "nccl", device: str = "cuda", others: str = "") -> Any:
    """One rank; `others` is what another rank says of its capture."""
    control = SimpleNamespace(
        meet=lambda: cuda.calls.append("meet"),
        any=lambda flag: flag or bool(others and cuda.calls[-1] == "capture"),
        all_gather_text=lambda text: [text, others],
    )
    return SimpleNamespace(device=torch.device(device), backend=backend, rank=0, size=1, control=control, measured=None)


def test_calls_in_a_row_leave_the_launches_out(cuda: FakeCuda) -> None:
    """A call of 2 us takes 25 us to launch: 27 us when it is timed by itself."""

    def call() -> None:
        cuda.kernel(2 * US, 25 * US)

    single = Stopwatch(torch.device("cuda"), ["call"], lambda phase: None).time([("call", call)])
    assert single[2] == pytest.approx(27 * US)
    seen = {}
    for way in ways(world(cuda), call, 10):
        assert way.time is not None
        seen[way.clock] = [way.time() for _ in range(3)]
    assert seen["cuda_back_to_back"] == pytest.approx([2 * US] * 3)
    assert seen["cuda_graph"] == pytest.approx([2 * US] * 3)


def test_a_graph_is_captured_after_the_calls_and_reset_after_its_replays(cuda: FakeCuda) -> None:
    for way in ways(world(cuda), lambda: cuda.kernel(2 * US, 25 * US), 2):
        assert way.time is not None
        way.time()
    read = ["query", "synchronize", *["elapsed_time"] * 2]
    in_a_row = ["meet", "synchronize", "hold", "record", "kernel", "kernel", "record", *read]
    replayed = ["meet", "synchronize", "hold", "record", "replay", "record", *read]
    assert cuda.calls == [*in_a_row, "synchronize", "capture", *replayed, "synchronize", "reset"]


@pytest.mark.parametrize(("own", "others"), [(True, ""), (False, "rank 1 cannot capture the calls in a CUDA graph: no")])
def test_a_capture_that_fails_on_a_rank_is_used_on_none_and_tried_no_more(cuda: FakeCuda, own: bool, others: str) -> None:
    calls = (lambda: cuda.synchronize()) if own else (lambda: cuda.kernel(2 * US))
    expected = "rank 0 cannot capture the calls in a CUDA graph: operation failed due to a previous error during capture"
    for _ in range(2):
        graph = [way for way in ways(world(cuda, others=others), calls, 10) if way.clock == "cuda_graph"]
        assert [way.time for way in graph] == [None]
        assert graph[0].reason == (expected if own else others)
    assert cuda.calls.count("capture") == 1
    assert "replay" not in cuda.calls


def test_a_capture_whose_end_raises_leaves_stream_allocator_and_generator_as_before(cuda: FakeCuda) -> None:
    before = cuda.stream
    list(ways(world(cuda), cuda.synchronize, 10))
    assert cuda.stream is before
    assert cuda.pools == []
    assert not cuda.generator.capturing


@pytest.mark.parametrize("words", ["", "no such collective"])
def test_any_error_of_a_capture_is_a_reason_that_all_ranks_agree_on(cuda: FakeCuda, words: str) -> None:
    """The collective that exchanges the reasons follows one that a failing rank shares."""
    agreed, one = [], world(cuda)
    one.control.any = lambda flag: agreed.append("any") or flag
    one.control.all_gather_text = lambda text: agreed.append("texts") or [text]

    def call() -> None:
        if cuda._graph is not None:
            raise ValueError(words)

    (graph,) = (way for way in ways(one, call, 10) if way.clock == "cuda_graph")
    assert graph.reason.endswith(f": {words or 'ValueError'}")
    assert agreed == ["any", "texts"]


def test_a_graph_is_reset_before_an_error_reaches_the_groups(cuda: FakeCuda) -> None:
    """The probe that raises closes the ways while the error is still on its way."""

    def sweep() -> None:
        with closing(ways(world(cuda), lambda: cuda.kernel(2 * US), 2)) as every:
            for way in every:
                if way.clock == "cuda_graph":
                    raise RuntimeError("NCCL gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        sweep()
    assert cuda.calls[-1] == "reset", "no wait for a device that hangs"


def test_what_makes_the_host_wait_has_no_device_times(cuda: FakeCuda) -> None:
    """A call of gloo returns when its result is there."""

    def call() -> None:
        cuda.now += 300 * US

    seen = list(ways(world(cuda, backend="gloo"), call, 10))
    assert [way.clock for way in seen] == ["host_back_to_back", "cuda_back_to_back", "cuda_graph"]
    assert seen[0].time is not None
    assert seen[0].time() == pytest.approx(300 * US)
    assert all(way.time is None and "gloo" in way.reason for way in seen[1:])
    (on_cpu,) = ways(world(cuda, backend="gloo", device="cpu"), call, 10)
    assert on_cpu.clock == "host_back_to_back", "nothing is said of clocks that a CPU does not have"


def test_a_call_that_waits_for_the_device_has_no_number_but_a_reason(cuda: FakeCuda) -> None:
    way = next(iter(ways(world(cuda), cuda.synchronize, 10)))
    assert way.time is not None
    assert all(isnan(way.time()) for _ in range(5))
    assert "did not run ahead" in way.reason


def test_devices_wait_for_each_other_by_an_all_reduce(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's barrier of NCCL groups makes the host wait, and would end every hold."""
    reduced, barrier = Mock(), Mock()
    monkeypatch.setattr(collectives, "all_reduce", reduced)
    monkeypatch.setattr(torch.distributed, "barrier", barrier)
    several = SimpleNamespace(device=torch.device("cpu"), backend="nccl", size=2, measured="the measured group")
    align = queued.aligning(several)  # type: ignore[arg-type]
    align()
    (buffer,), keywords = reduced.call_args
    assert (buffer.tolist(), keywords) == ([0.0], {"group": "the measured group"})
    queued.aligning(SimpleNamespace(size=1, backend="nccl"))()  # type: ignore[arg-type]
    queued.aligning(SimpleNamespace(size=2, backend="gloo"))()  # type: ignore[arg-type]
    assert reduced.call_count == 1
    assert not barrier.called
