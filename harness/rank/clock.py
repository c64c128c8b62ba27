"""The stopwatch: the only place that reads clocks around a phase, and the only one that waits for the device to read them."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

Phase = tuple[str, Callable[[], None]]

HOST, CUDA_EVENT = "host", "cuda_event"


class Stopwatch:
    """Times the phases of one iteration after the other.

    Between the two clock reads of a phase stands one call. On CUDA an event is recorded outside the host's two reads, so that
    host time without a synchronize is launch time, and is told from the device's.
    """

    def __init__(self, device: torch.device, names: Sequence[str], enter: Callable[[str], None]) -> None:
        self._names, self._enter, self._device = tuple(names), enter, device
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * len(names))] if device.type == "cuda" else []

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns: every phase, phases of one name summed, then `step`."""
        phases = [*dict.fromkeys(self._names), "step"]
        clocks = [HOST, CUDA_EVENT] if self._events else [HOST]
        return [(phase, clock) for clock in clocks for phase in phases]

    def time(self, phases: Sequence[Phase]) -> list[float]:
        """Run the phases once; seconds, as `columns` says. `step` is from the first clock read to the last."""
        reads = self._run_on_device(phases) if self._events else self._run(phases)
        seconds = self._by_phase(
            [end - start for start, end in zip(reads[::2], reads[1::2], strict=True)], reads[-1] - reads[0]
        )
        if self._events:
            torch.cuda.synchronize(self._device)
            events = self._events
            spans = [start.elapsed_time(end) / 1e3 for start, end in zip(events[::2], events[1::2], strict=True)]
            seconds += self._by_phase(spans, events[0].elapsed_time(events[-1]) / 1e3)
        return seconds

    def _run(self, phases: Sequence[Phase]) -> list[float]:
        reads: list[float] = []
        for name, call in phases:
            self._enter(name)
            start = perf_counter()
            call()
            end = perf_counter()
            reads += (start, end)
        return reads

    def _run_on_device(self, phases: Sequence[Phase]) -> list[float]:
        reads: list[float] = []
        for index, (name, call) in enumerate(phases):
            self._enter(name)
            self._events[2 * index].record()
            start = perf_counter()
            call()
            end = perf_counter()
            self._events[2 * index + 1].record()
            reads += (start, end)
        return reads

    def _by_phase(self, spans: list[float], step: float) -> list[float]:
        summed = dict.fromkeys(self._names, 0.0)
        for name, span in zip(self._names, spans, strict=True):
            summed[name] += span
        return [*summed.values(), step]
