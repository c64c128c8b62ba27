"""Device time free of launch: the device waits until the host has launched a whole iteration."""

from collections import deque
from collections.abc import Callable, Sequence
from math import nan
from time import perf_counter

import torch

from harness.probes.control import Control
from harness.probes.hold import hold
from harness.rank.clock import Phase, by_phase, unseen
from harness.rank.process_group import World
from harness.rank.rig import Parts
from harness.schema.record import CUDA_QUEUED
from harness.tensors import collectives

_TIMES = 2.0
"""Length of a hold, in largest launch times of the last iterations."""
_RECENT = 5
_LEAST_S, _MOST_S = 1e-3, 2.0
"""Shortest and longest hold."""
_TRIES = 3
"""Early holds in a row after which no further hold is tried."""
NOT_AHEAD = (
    f"the host did not run ahead of the device in {_TRIES} tries: the step makes the host wait for the device, has more "
    f"launches than the driver queues (about 1,000), or takes more than {_MOST_S / _TIMES:g} s to launch"
)


class QueuedStopwatch:
    """Times phases by events, of iterations that the host has launched before the device begins them.

    An iteration counts if its first event had not been reached on any rank when that rank's host had launched the last one.
    Otherwise its numbers are NaN on all ranks, and the next hold is longer.
    """

    def __init__(
        self,
        device: torch.device,
        names: Sequence[str],
        control: Control,
        align: Callable[[], None],
        host_s: float,
        enter: Callable[[str], None] = unseen,
    ) -> None:
        """`align` makes the devices of all ranks wait for each other, without the hosts; `host_s` is the likely launch time.

        `enter` is called with each phase that begins: the watchdog judges a rank by the seconds since then.
        """
        self._enter = enter
        self._device, self._names, self._control, self._align = device, tuple(names), control, align
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * len(names))]
        self._launches = deque([host_s], maxlen=_RECENT)
        self._early = 0
        """Early holds in a row."""

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns."""
        return [(phase, CUDA_QUEUED) for phase in (*dict.fromkeys(self._names), "step")]

    @property
    def launch_s(self) -> float:
        """Longest of the last launches, in seconds."""
        return max(self._launches)

    @property
    def refused(self) -> bool:
        """True after several early holds in a row; equal on all ranks."""
        return self._early >= _TRIES

    def time(self, phases: Sequence[Phase]) -> list[float]:
        """Run the phases once, unless it is refused; seconds, as `columns` says. All ranks call alike."""
        if self.refused:
            return [nan] * len(self.columns)
        early = self._launch(phases)
        torch.cuda.synchronize(self._device)
        if self._control.any(early):
            self._early += 1
            return [nan] * len(self.columns)
        self._early = 0
        events = self._events
        spans = [start.elapsed_time(end) / 1e3 for start, end in zip(events[::2], events[1::2], strict=True)]
        return by_phase(self._names, spans, events[0].elapsed_time(events[-1]) / 1e3)

    def _launch(self, phases: Sequence[Phase]) -> bool:
        """Hold the device and launch the phases; True if the device had begun them before the last launch."""
        torch.cuda.synchronize(self._device)
        hold(min(max(_TIMES * self.launch_s, _LEAST_S), _MOST_S))
        began = perf_counter()
        self._align()
        for index, (name, call) in enumerate(phases):
            self._enter(name)
            self._events[2 * index].record()
            call()
            self._events[2 * index + 1].record()
        early = self._events[0].query()
        self._launches.append(perf_counter() - began)
        return bool(early)


def can_hold(device: torch.device) -> bool:
    """Return True if the device works while the host goes on."""
    return device.type == "cuda"


def host_waits(parts: Parts, world: World, *, spans_ranks: bool) -> str:
    """Reason why the host cannot run ahead in a case; empty where it may. Equal on all ranks."""
    if parts.sync.host_waits:
        return "the sync policy makes the host wait for the device, or for other ranks"
    if parts.aggregation.host_waits:
        return "the aggregation makes the host wait for the device (torch's hook of PowerSGD synchronizes)"
    if parts.batchnorm.synced and world.size > 1:
        return "torch's SyncBatchNorm makes the host wait for the device in forward"
    if world.backend == "gloo" and spans_ranks:
        return "gloo's collectives make the host wait for the device"
    return ""


def aligning(world: World) -> Callable[[], None]:
    """Barrier on the devices of all ranks, where the measured group's collectives are launched without waiting."""
    if world.size == 1 or world.backend != "nccl":
        return _nothing
    buffer = torch.zeros(1, device=world.device)
    return lambda: _all_reduce(buffer, world)


def _all_reduce(buffer: torch.Tensor, world: World) -> None:
    """Not torch's barrier, which under NCCL makes the host wait for the stream."""
    collectives.all_reduce(buffer, group=world.measured)


def _nothing() -> None:
    """One rank, or a backend whose collectives make the host wait, has no barrier on the device."""
