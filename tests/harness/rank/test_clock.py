"""The stopwatch: one call between two clock reads, and a step from the first read to the last."""

import sys
from collections.abc import Callable
from math import isnan
from statistics import median
from types import FrameType

import pytest
import torch

from harness.probes.control import Control
from harness.rank import clock
from harness.rank.clock import Stopwatch
from harness.rank.queued import QueuedStopwatch
from tests.rehearsal import DEVICE, on_cuda


class FakeClock:
    """Ticks when it is told to; counts its reads."""

    def __init__(self) -> None:
        self.now, self.reads = 0.0, 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now

    def passes(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def test_phases_of_one_name_add_up_and_the_step_spans_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, entered = FakeClock(), []
    monkeypatch.setattr(clock, "perf_counter", fake)
    phases = [("backward", fake.passes(2)), ("sync", fake.passes(0.5)), ("aggregate", fake.passes(3)), ("sync", fake.passes(1))]
    stopwatch = Stopwatch(torch.device("cpu"), [name for name, _ in phases], entered.append)
    assert stopwatch.columns == [("backward", "host"), ("sync", "host"), ("aggregate", "host"), ("step", "host")]
    assert stopwatch.time(phases) == [2, 1.5, 3, 6.5]
    assert entered == ["backward", "sync", "aggregate", "sync"]
    assert fake.reads == 8


def test_one_call_stands_between_the_two_clock_reads_of_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by the interpreter: of the stopwatch's own loop, every call, in Python or in C, between read and read."""
    calls: list[str] = []

    def read() -> float:
        return 0.0

    def work() -> None:
        sorted([2, 1])  # what the phase itself calls is its own

    def note(frame: FrameType, event: str, argument: object) -> None:
        own = frame if event == "c_call" else frame.f_back
        if event in ("call", "c_call") and own is not None and own.f_code.co_name == "_run":
            calls.append(frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "?"))

    monkeypatch.setattr(clock, "perf_counter", read)
    stopwatch = Stopwatch(torch.device("cpu"), ["one", "two"], lambda phase: None)
    sys.setprofile(note)
    try:
        stopwatch.time([("one", work), ("two", work)])
    finally:
        sys.setprofile(None)
    reads = [index for index, name in enumerate(calls) if name == "read"]
    assert len(reads) == 4
    assert [calls[start + 1 : end] for start, end in zip(reads[::2], reads[1::2], strict=True)] == [["work"], ["work"]]


@pytest.mark.gpu
def test_a_held_device_shows_its_work_without_launches() -> None:
    """Of 50 small kernels. A hold that ends early is left out, as where another process has the core."""
    if not on_cuda("a held device begins after the last launch"):
        return
    device = torch.device("cuda")
    x = torch.zeros(256, device=device)

    def call() -> None:
        for _ in range(50):
            x.add_(1)

    idle = Stopwatch(device, ["forward"], lambda phase: None)
    control = Control(None, 0, 1)
    held = QueuedStopwatch(device, ["forward"], control, lambda: None, 1e-3)
    with_launches = median(idle.time([("forward", call)])[2] for _ in range(20))
    without = [seconds[0] for seconds in (held.time([("forward", call)]) for _ in range(20)) if not isnan(seconds[0])]
    assert all(seconds > 0 for seconds in [with_launches, *without])


@pytest.mark.gpu
def test_events_time_the_device_and_the_host_times_the_launch() -> None:
    work = (lambda: torch.cuda._sleep(200_000_000)) if on_cuda("the device is busy for about 0.1 s") else (lambda: None)
    stopwatch = Stopwatch(torch.device(DEVICE), ["forward"], lambda phase: None)
    assert stopwatch.columns[:2] == [("forward", "host"), ("step", "host")]
    if on_cuda("a stopwatch on a GPU has the clock cuda_event"):
        assert stopwatch.columns[2:] == [("forward", "cuda_event"), ("step", "cuda_event")]
        torch.cuda._sleep(1000)
    seconds = stopwatch.time([("forward", work)])
    assert len(seconds) == len(stopwatch.columns)
    if on_cuda("events time the device, and not the launch"):
        launch, _, on_device, _ = seconds
        assert on_device > 0.02
        assert launch < on_device / 2
