"""Sampler: a process that reads clocks, power, temperature and load of a host's GPUs while the ranks measure.

`python sampler.py PARENT HERTZ CPUS UUID...`, started by one rank of each host. It has the lowest priority, imports no torch,
writes no file, and ends with its parent. A request is a line on its standard input,
`{"case": ..., "begin": ..., "end": ..., "last": ...}`. The sampler adds the samples of that window (seconds of the host's
monotonic clock) to those of the case, forgets all older ones, and answers with one line: the figures of the case by UUID.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median_low
from typing import Any

_MOST = 36_000
"""Samples that wait for a request: an hour at 10 Hz. When there are as many, every second one is dropped, again and again."""
_PR_SET_PDEATHSIG = 1
_LOWEST = 19


@dataclass(frozen=True)
class Reading:
    """State of one GPU at one moment; None where NVML has no answer."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: int | None
    temperature_c: int | None
    utilization: int | None
    slowed_by: tuple[str, ...] = ()
    idle: bool = False


@dataclass(frozen=True)
class Sample:
    """Readings of all GPUs, taken between two moments."""

    begun: float
    ended: float
    readings: Sequence[Reading]


@dataclass
class Tally:
    """Readings of one GPU in one case, counted by value: its size does not grow with the time of the case."""

    samples: int = 0
    idle: int = 0
    values: dict[str, Counter[int]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reading: Reading) -> None:
        """Count a reading. An idle device has the clocks of an idle device: they are not counted."""
        self.samples += 1
        self.idle += reading.idle
        if reading.idle:
            return
        self.reasons.update(reading.slowed_by)
        for name in ("sm_mhz", "memory_mhz", "power_w", "temperature_c", "utilization"):
            value = getattr(reading, name)
            if value is not None:
                self.values.setdefault(name, Counter())[value] += 1

    def figures(self) -> dict[str, Any]:
        """Smallest, median and largest value of each quantity, and how many samples had each reason."""
        found: dict[str, Any] = {"samples": self.samples, "idle": self.idle, "reasons": dict(self.reasons)}
        for name, counts in self.values.items():
            found |= {f"{name}_min": min(counts), f"{name}_median": median_low(counts.elements()), f"{name}_max": max(counts)}
        return found


@dataclass
class Sampler:
    """Samples that are waiting for a request, and tallies of cases."""

    uuids: Sequence[str]
    read: Callable[[], Sequence[Reading]]
    waiting: list[Sample] = field(default_factory=list)
    cases: dict[str, list[Tally]] = field(default_factory=dict)
    _step: int = 1
    """One sample of so many is kept."""
    _taken: int = 0

    def sample(self) -> None:
        """Read all GPUs once."""
        begun = time.monotonic()
        readings = self.read()
        self._taken += 1
        if self._taken % self._step == 0:
            self.waiting.append(Sample(begun, time.monotonic(), readings))
        if len(self.waiting) >= _MOST:
            self.waiting, self._step = self.waiting[::2], 2 * self._step

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Figures of a case, with the samples of one more window, by UUID."""
        tallies = self.cases.setdefault(request["case"], [Tally() for _ in self.uuids])
        for sample in self.waiting:
            if request["begin"] <= sample.begun and sample.ended <= request["end"]:
                for tally, reading in zip(tallies, sample.readings, strict=True):
                    tally.add(reading)
        self.waiting, self._step = [sample for sample in self.waiting if sample.begun > request["end"]], 1
        if request["last"]:
            del self.cases[request["case"]]
        return {uuid: tally.figures() for uuid, tally in zip(self.uuids, tallies, strict=True)}


def serve(sampler: Sampler, interval: float) -> None:
    """Sample, and answer requests, until standard input ends."""
    due = time.monotonic()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))
        if ready:
            line = sys.stdin.buffer.readline()
            if not line:
                return
            sys.stdout.write(json.dumps(sampler.answer(json.loads(line))) + "\n")
            sys.stdout.flush()
        if time.monotonic() >= due:
            sampler.sample()
            due = max(due + interval, time.monotonic() + interval / 2)  # slow answers of the driver: it still rests in between


def reader(nvml: Any, uuids: Sequence[str]) -> Callable[[], Sequence[Reading]]:
    """Function that reads the GPUs of these UUIDs once."""
    from harness.rank.environment.nvml import find_device, whole_device

    handles = [find_device(nvml, uuid) for uuid in uuids]
    devices = [None if handle is None else whole_device(nvml, handle) for handle in handles]
    return lambda: [_read(nvml, device) for device in devices]


def _read(nvml: Any, device: Any) -> Reading:
    from harness.rank.environment.nvml import ask, is_idle, reason_bits, slowdowns

    if device is None:
        return Reading(None, None, None, None, None)
    power, used = ask(nvml, nvml.nvmlDeviceGetPowerUsage, device), ask(nvml, nvml.nvmlDeviceGetUtilizationRates, device)
    bits = reason_bits(nvml, device) or 0
    return Reading(
        sm_mhz=ask(nvml, nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
        memory_mhz=ask(nvml, nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_MEM),
        power_w=None if power is None else round(power / 1e3),
        temperature_c=ask(nvml, nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        utilization=None if used is None else int(used.gpu),
        slowed_by=tuple(slowdowns(nvml, bits)),
        idle=is_idle(nvml, bits),
    )


def keep_away(used: set[int]) -> None:
    """Lowest priority; on CPUs that no rank may use where there are such CPUs, else on any."""
    os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    free = set(range(os.cpu_count() or 1)) - used
    for cpus in (free, used):
        with contextlib.suppress(OSError):  # outside of the container's set, or none
            os.sched_setaffinity(0, cpus)
            return


def end_with(parent: int) -> bool:
    """Ask the kernel to end this process with its parent; False if the parent has ended before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's: the end of standard input ends this process
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # also where another child of the parent has inherited the pipe
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def main(parent: str, hertz: str, cpus: str, *uuids: str) -> int:
    """Serve until the parent ends. Exit status 0 also where there is no NVML: the run goes on without samples."""
    from harness.rank.environment.files import cpu_list
    from harness.rank.environment.nvml import start_nvml

    if not end_with(int(parent)):
        return 0
    keep_away(cpu_list(cpus))
    nvml = start_nvml()
    if nvml is not None:
        serve(Sampler(uuids, reader(nvml, uuids)), 1 / float(hertz))
    return 0


if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11: the script's folder is not on the path
        del sys.path[0]
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    sys.exit(main(*sys.argv[1:]))
