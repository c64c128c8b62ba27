"""A stand-in for torch.cuda on a host without a GPU: one stream, and a simulated clock of the host and of the device.

A kernel begins when the host has launched it and the kernels before it have ended. The stand-in refuses what CUDA refuses: to
read the time between events that were not recorded, or that the device has not reached.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch

from harness.probes import hold

CYCLES_PER_S = 1e9


class FakeCuda:
    """`now` is the host's time, `free_at` when the device will have done everything, both in seconds."""

    def __init__(self, queue: int | None = None) -> None:
        """`queue`: kernels that may wait for the device before a launch makes the host wait."""
        self.now, self.free_at, self.queue = 0.0, 0.0, queue
        self.calls: list[str] = []
        """Names of the calls in order."""
        self.held: list[float] = []
        """Seconds of every hold."""
        self.cycles_per_s = CYCLES_PER_S
        self._ends: list[float] = []
        self.stream = self._own_stream = FakeStream("default")
        """The current one. Only a capture has another."""
        self.pools: list[tuple[int, int]] = []
        """Memory pools to which a capture allocates."""
        self.generator = FakeGenerator()
        self._graph: FakeGraph | None = None
        self._capture_broken = False

    def kernel(self, seconds: float, launch: float = 0.0, name: str = "kernel") -> None:
        """Launch work for the device; the host takes `launch` seconds to do so."""
        if self._graph is not None:
            self._graph.kernels.append(seconds)
            return
        self.calls.append(name)
        self.now += launch
        self._ends = [end for end in self._ends if end > self.now]
        if self.queue is not None and len(self._ends) >= self.queue:
            self.now = self._ends[-self.queue]
        self.free_at = max(self.free_at, self.now) + seconds
        self._ends.append(self.free_at)

    def kernels(self, count: int, seconds: float, launch: float) -> Callable[[], None]:
        """Phase that launches `count` kernels."""

        def call() -> None:
            for _ in range(count):
                self.kernel(seconds, launch)

        return call

    @contextmanager
    def capture(self, graph: "FakeGraph", pool: tuple[int, int], capture_error_mode: str) -> Iterator[None]:
        """Collect kernels instead of running them. Other threads' calls of CUDA make a global capture fail.

        As torch.cuda.graph does, it leaves all as it is where the end of the capture raises: stream, pool and generator.
        """
        assert capture_error_mode == "thread_local"
        self.calls.append("capture")
        self._graph, self._capture_broken = graph, False
        self.stream, self.generator.capturing = FakeStream("capture"), True
        self.pools.append(pool)
        try:
            yield
        finally:
            self._graph = None
            if self._capture_broken:
                raise RuntimeError("operation failed due to a previous error during capture\nand more")
            self.end_pool(0, pool)
            self.stream, self.generator.capturing = self._own_stream, False

    def end_pool(self, device: int, pool: tuple[int, int]) -> None:
        if pool not in self.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.pools.remove(pool)

    def set_stream(self, stream: "FakeStream") -> None:
        self.stream = stream

    def sleep(self, cycles: int) -> None:
        self.held.append(cycles / self.cycles_per_s)
        self.kernel(self.held[-1], name="hold")

    def synchronize(self, device: object = None) -> None:
        if self._graph is not None:
            self._capture_broken = True
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.calls.append("synchronize")
        self.now = max(self.now, self.free_at)

    def perf_counter(self) -> float:
        return self.now


class FakeStream:
    """Equal to itself alone."""

    def __init__(self, name: str) -> None:
        self.name, self.device = name, torch.device("cuda", 0)


class FakeGenerator:
    """Knows if a capture of its numbers is under way; a copy of its state does not."""

    capturing = False

    def clone_state(self) -> "FakeGenerator":
        return FakeGenerator()

    def graphsafe_set_state(self, state: "FakeGenerator") -> None:
        self.capturing = state.capturing


class FakeEvent:
    """Completes when the device has done what was launched before it was recorded."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.at: float | None = None

    def record(self) -> None:
        self._cuda.calls.append("record")
        self.at = max(self._cuda.now, self._cuda.free_at)

    def query(self) -> bool:
        self._cuda.calls.append("query")
        return self._reached()

    def _reached(self) -> bool:
        return self.at is not None and self.at <= self._cuda.now

    def synchronize(self) -> None:
        if self.at is not None:
            self._cuda.now = max(self._cuda.now, self.at)

    def elapsed_time(self, end: "FakeEvent") -> float:
        self._cuda.calls.append("elapsed_time")
        if self.at is None or end.at is None or not self._reached() or not end._reached():
            raise RuntimeError("Both events must be recorded and completed before calculating elapsed time.")
        return (end.at - self.at) * 1e3


class FakeGraph:
    """Launches what was captured at once, in 10 us."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.kernels: list[float] = []

    def replay(self) -> None:
        self._cuda.calls.append("replay")
        self._cuda.now += 10e-6
        self._cuda.free_at = max(self._cuda.free_at, self._cuda.now) + sum(self.kernels)

    def reset(self) -> None:
        self._cuda.calls.append("reset")


def install(monkeypatch: pytest.MonkeyPatch, *clocks: ModuleType, queue: int | None = None) -> FakeCuda:
    """Put the stand-in in the place of torch.cuda, and of perf_counter in the modules `clocks`."""
    cuda = FakeCuda(queue)

    def event(**arguments: Any) -> FakeEvent:
        assert arguments == {"enable_timing": True}
        return FakeEvent(cuda)

    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(cuda))
    monkeypatch.setattr(torch.cuda, "graph", cuda.capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: cuda.stream)
    monkeypatch.setattr(torch.cuda, "set_stream", cuda.set_stream)
    monkeypatch.setattr(torch.cuda, "default_generators", (cuda.generator,))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda device, pool: cuda.calls.append("release"), raising=False)
    monkeypatch.setattr(torch.cuda, "_sleep", cuda.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", cuda.synchronize)
    for module in clocks:
        monkeypatch.setattr(module, "perf_counter", cuda.perf_counter)
    hold.cycles_per_s.cache_clear()
    hold.cycles_per_s()
    cuda.calls.clear()
    cuda.held.clear()
    return cuda
