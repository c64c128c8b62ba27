"""NVTX ranges: nested as a profiler needs them, and outside of every clock read and event of a phase."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.rank import clock
from harness.rank.clock import Stopwatch
from harness.rank.loop import Loop
from harness.rank.losses import LossRecord
from harness.rank.nvtx import Ranges, check_nvtx
from harness.schema.refusal import RefusedError

DEVICE = torch.device("cuda")


class Event:
    """A stand-in for a CUDA event."""

    calls: list[str]

    def __init__(self, enable_timing: bool) -> None:
        """As torch's."""

    def record(self) -> None:
        self.calls.append("event")

    def elapsed_time(self, other: object) -> float:
        return 1.0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls, in order, of a torch.cuda that does nothing, and of the stopwatch's clock."""
    called: list[str] = []

    def noted(name: str) -> Callable[..., float]:
        return lambda *arguments: (called.append(name), 0.0)[1]

    monkeypatch.setattr(Event, "calls", called, raising=False)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", noted("synchronize"))
    monkeypatch.setattr("torch.cuda.nvtx.range_push", lambda name: called.append(f"push {name}"))
    monkeypatch.setattr("torch.cuda.nvtx.range_pop", noted("pop"))
    monkeypatch.setattr("torch.cuda.profiler.start", noted("start"))
    monkeypatch.setattr("torch.cuda.profiler.stop", noted("stop"))
    for name in ("reset_peak", "peak_bytes"):
        monkeypatch.setattr(f"harness.rank.loop.{name}", lambda device: 0)
    monkeypatch.setattr(clock, "perf_counter", noted("read"))
    return called


class Counts:
    """A pace that begins, and asks for no more."""

    def begin(self) -> None:
        """Of no matter."""

    def verdict(self, made: torch.Tensor) -> str:
        return "enough"

    def left(self, made: int) -> int:
        return 0


class Phased:
    """A rig of two phases."""

    def __init__(self, *phases: tuple[str, Callable[[], Any]]) -> None:
        self.model, self.phases, self.loss = torch.nn.Identity(), [list(phases)], LossRecord(None)


def looped(ranges: Ranges, rig: Phased, called: list[str], warm_up: int, measured: int) -> None:
    """Run a loop as a case does, all ranges around it."""
    names = [name for name, _ in rig.phases[0]]
    entered = ranges.after(lambda phase: called.append(f"enter {phase}"))
    stopwatch = Stopwatch(DEVICE, names, entered, leave=ranges.leave)
    loop = Loop(DEVICE, rig, stopwatch, Counts(), None, lambda model, run: (called.append("meet"), run())[1], ranges)  # type: ignore[arg-type]
    with ranges.of_case():
        loop.run(warm_up, measured)


def test_no_range_begins_or_ends_between_the_clock_reads_of_a_phase(calls: list[str]) -> None:
    rig = Phased(*((name, lambda name=name: calls.append(name)) for name in ("forward", "backward")))
    looped(Ranges("case", 1), rig, calls, 1, 1)
    phases = [
        *("meet", "enter forward", "push forward", "event", "read", "forward", "read", "event"),
        *("enter backward", "pop", "push backward", "event", "read", "backward", "read", "event", "pop", "synchronize"),
    ]
    assert calls == [
        *("push case", "push warm-up 0", *phases, "pop"),
        *("start", "push iteration 0", *phases, "pop"),
        *("pop", "stop"),
    ]


def test_a_phase_that_raises_leaves_no_range_open(calls: list[str]) -> None:
    def fail() -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        looped(Ranges("case", 0), Phased(("forward", fail)), calls, 0, 1)
    assert sum(call.startswith("push") for call in calls) == calls.count("pop") == 3
    assert calls.count("start") == calls.count("stop") == 1


def test_a_profiler_that_cannot_stop_hides_no_error(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("planted")

    def stop() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("torch.cuda.profiler.stop", stop)
    with pytest.raises(ValueError, match="planted"):
        looped(Ranges("case", 0), Phased(("forward", fail)), calls, 0, 1)
    assert calls.count("pop") == 3


def test_ranges_on_the_cpu_are_refused_with_what_to_do() -> None:
    check_nvtx(torch.device("cpu"), nvtx=False)
    check_nvtx(DEVICE, nvtx=True)
    with pytest.raises(RefusedError, match=r"nvtx=true: this run is on the CPU, .* accepted: device=cuda; try profile=true"):
        check_nvtx(torch.device("cpu"), nvtx=True)
