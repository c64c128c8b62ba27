"""The stopwatch: the only place that reads clocks around a phase, and the only one that waits for the device to read them."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from harness.schema.record import ARRIVAL, CUDA_EVENT, HOST

Phase = tuple[str, Callable[[], None]]


class Stopwatch:
    """Times the phases of one iteration after the other.

    Between the two clock reads of a phase stands one call. On CUDA an event is recorded outside the host's two reads, so that
    host time without a synchronize is launch time, and is told from the device's.
    """

    def __init__(
        self,
        device: torch.device,
        names: Sequence[str],
        enter: Callable[[str], None],
        arriving: str = "",
        ahead_s: float = 0.0,
        leave: Callable[[], None] | None = None,
    ) -> None:
        """`arriving` is the phase whose beginning is noted, empty for none; this clock is `ahead_s` ahead of rank 0's.

        `leave` is called after the last clock read of an iteration, before the host waits for the device.
        """
        self._names, self._enter, self._device = tuple(names), enter, device
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * len(names))] if device.type == "cuda" else []
        self._anchor = torch.cuda.Event(enable_timing=True) if self._events else None
        self._arriving, self._ahead_s, self._leave = arriving, ahead_s, leave

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns: every phase, phases of one name summed; `step`; the arrival."""
        phases = [*dict.fromkeys(self._names), "step"]
        clocks = [HOST, CUDA_EVENT] if self._events else [HOST]
        return [(phase, clock) for clock in clocks for phase in phases] + [(self._arriving, ARRIVAL)] * bool(self._arriving)

    @property
    def refused(self) -> bool:
        """False: every iteration is timed."""
        return False

    def time(self, phases: Sequence[Phase]) -> list[float]:
        """Run the phases once; seconds, as `columns` says. `step` is from the first clock read to the last."""
        anchored = self._drop_anchor()
        reads = self._run_on_device(phases) if self._events else self._run(phases)
        if self._leave is not None:
            self._leave()
        host = [end - start for start, end in zip(reads[::2], reads[1::2], strict=True)]
        seconds = by_phase(self._names, host, reads[-1] - reads[0])
        if self._events:
            torch.cuda.synchronize(self._device)
            events = self._events
            spans = [start.elapsed_time(end) / 1e3 for start, end in zip(events[::2], events[1::2], strict=True)]
            seconds += by_phase(self._names, spans, events[0].elapsed_time(events[-1]) / 1e3)
        return seconds + ([self._arrival(reads, anchored)] if self._arriving else [])

    def _drop_anchor(self) -> float:
        """When an idle device was at the anchor: between the host's two reads, which are microseconds apart. 0 without one."""
        if self._anchor is None or not self._arriving:
            return 0.0
        before = perf_counter()
        self._anchor.record()
        self._anchor.synchronize()
        return (before + perf_counter()) / 2

    def _arrival(self, reads: list[float], anchored: float) -> float:
        """On CUDA that of the device, which may come long after the host has launched its work."""
        place = self._names.index(self._arriving)
        if self._anchor is None:
            return reads[2 * place] - self._ahead_s
        since = float(self._anchor.elapsed_time(self._events[2 * place])) / 1e3
        return anchored + since - self._ahead_s

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


def unseen(phase: str) -> None:
    """Ignore a phase that begins."""


def by_phase(names: Sequence[str], spans: Sequence[float], step: float) -> list[float]:
    """Sum the spans of phases of one name, in order of first appearance; `step` comes last."""
    summed = dict.fromkeys(names, 0.0)
    for name, span in zip(names, spans, strict=True):
        summed[name] += span
    return [*summed.values(), step]
