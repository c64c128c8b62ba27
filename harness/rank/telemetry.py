"""Telemetry: what each GPU did during each case, read by a sampler beside the ranks; one rank of each host asks it."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import nan
from typing import Any

from harness.rank.environment import sampler
from harness.rank.environment.files import spell_cpus
from harness.rank.environment.gpu import Gpu
from harness.rank.environment.nvml import start_nvml
from harness.rank.memory import DeviceMemory
from harness.rank.preflight import gpu_uuid
from harness.rank.process_group import World
from harness.schema.case import Case
from harness.schema.record import Device

Window = tuple[float, float]
"""Seconds of the host's monotonic clock: from the first measured iteration to the end of the last."""
_PATIENCE_S = 5.0
"""For an answer of the sampler. One that is slower is given up: the run goes on without samples."""
_END_S = 2.0
_QUANTITIES = (
    *("sm_mhz_min", "sm_mhz_median", "sm_mhz_max", "memory_mhz_median", "power_w_median", "power_w_max"),
    *("temperature_c_max", "utilization_median"),
)
_POWER = ("SwPowerCap", "HwPowerBrakeSlowdown")
_HEAT = ("SwThermalSlowdown", "HwThermalSlowdown")


@dataclass
class Sampling:
    """The sampler's process. None of its failures is the run's: after the first one there are no more samples."""

    process: "subprocess.Popen[bytes] | None"

    @classmethod
    def start(cls, uuids: Sequence[str], hertz: int, cpus: set[int]) -> "Sampling":
        """Start it; `cpus` are those that ranks of this host may use."""
        command = [sys.executable, sampler.__file__, str(os.getpid()), str(hertz), spell_cpus(cpus), *uuids]
        try:
            return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        except OSError as error:
            _say(f"the sampler cannot be started: {error}")
            return cls(None)

    def ask(self, case_id: str, window: Window, *, last: bool) -> dict[str, Any]:
        """Figures of the case so far, by UUID; empty where there is no sampler any more."""
        if self.process is None:
            return {}
        begin, end = window
        request = {"case": case_id, "begin": begin, "end": end, "last": last}
        try:
            return _exchange(self.process, json.dumps(request).encode() + b"\n")
        except (OSError, ValueError) as error:
            _say(f"{type(error).__name__}: {error}")
            self.end()
            return {}

    def end(self) -> None:
        """End the process. One that stands in a call of the driver cannot be ended, and is not waited for."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_S)


def _exchange(process: "subprocess.Popen[bytes]", request: bytes) -> dict[str, Any]:
    """Send a line and return the answer. Raises OSError or ValueError where none comes in time, or none can be read."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(request)
    process.stdin.flush()
    ready, _, _ = select.select([process.stdout], [], [], _PATIENCE_S)
    if not ready:
        raise TimeoutError(f"no answer in {_PATIENCE_S:g} s")
    return dict(json.loads(process.stdout.readline()))  # lines come whole or not at all


def _say(why: str) -> None:
    """Write to the rank's log, for a person who misses the samples."""
    print(f"reducebench: from now on GPUs are not sampled: {why}", file=sys.stderr)


@dataclass
class Telemetry:
    """All ranks call alike. On ranks without a GPU nothing is started, gathered or written."""

    world: World
    uuids: Sequence[str | None]
    """GPU of each rank; None where torch has no UUID, as on ROCm."""
    active: bool
    """True if some rank has a GPU. Equal on all ranks."""
    gpu: Gpu | None = None
    sampling: Sampling | None = None
    """On one rank of each host."""
    _figures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, world: World, hertz: int) -> "Telemetry":
        """Start the sampler of this host, if this is the rank that does so, and if the host has NVML; hertz 0: start none."""
        own = {"gpu": world.device.type == "cuda", "uuid": gpu_uuid(world.device), "cpus": sorted(os.sched_getaffinity(0))}
        everyone = [json.loads(text) for text in world.control.all_gather_text(json.dumps(own))]
        first = world.rank - world.rank % world.ranks_per_node
        here = everyone[first : first + world.ranks_per_node]
        uuids = list(dict.fromkeys(rank["uuid"] for rank in here if rank["uuid"]))
        sampling = None
        if hertz and uuids and world.rank == first and start_nvml() is not None:
            sampling = Sampling.start(uuids, hertz, {cpu for rank in here for cpu in rank["cpus"]})
        active = any(rank["gpu"] or rank["uuid"] for rank in everyone)
        return cls(world, [rank["uuid"] for rank in everyone], active, Gpu.of(world.device), sampling)

    def visited(self, case: Case, window: Window, *, last: bool) -> None:
        """Attribute the samples of a visit to its case. After all is measured: nothing is timed here."""
        if self.sampling is not None:
            self._figures[case.case_id] = self.sampling.ask(case.case_id, window, last=last)

    def rows(self, case: Case, memory: DeviceMemory | None) -> list[Device]:
        """A row for each rank, on all ranks; `memory` is this rank's. Empty without GPUs."""
        if not self.active:
            return []
        own = {
            "reserved": memory.reserved_bytes if memory else 0,
            "retries": memory.alloc_retries if memory else 0,
            "process": self.gpu.own_bytes() if self.gpu else None,
            "sampled": self._figures.pop(case.case_id, {}),
        }
        everyone = [json.loads(text) for text in self.world.control.all_gather_text(json.dumps(own))]
        sampled = {uuid: figures for rank in everyone for uuid, figures in rank["sampled"].items()}
        ranks = enumerate(zip(everyone, self.uuids, strict=True))
        return [_row(case.case_id, rank, uuid or "", one, sampled.get(uuid, {})) for rank, (one, uuid) in ranks]

    def close(self) -> None:
        """End the sampler."""
        if self.sampling is not None:
            self.sampling.end()


def _row(case_id: str, rank: int, uuid: str, own: Mapping[str, Any], figures: Mapping[str, Any]) -> Device:
    samples, idle = figures.get("samples", 0), figures.get("idle", 0)
    reasons: dict[str, int] = figures.get("reasons", {})
    busy = samples - idle
    return Device(
        case_id=case_id,
        rank=rank,
        uuid=uuid,
        samples=samples,
        idle=idle,
        **{name: float(figures.get(name, nan)) for name in _QUANTITIES},
        slowed_by_power=_share(reasons, _POWER, busy),
        slowed_by_heat=_share(reasons, _HEAT, busy),
        slowed_by="; ".join(f"{name} {count / busy:.1%}" for name, count in sorted(reasons.items())) if busy else "",
        process_bytes=nan if own["process"] is None else float(own["process"]),
        reserved_bytes=own["reserved"],
        alloc_retries=own["retries"],
    )


def _share(reasons: Mapping[str, int], names: Sequence[str], busy: int) -> float:
    """Share of the samples that have one of these reasons, at least: two reasons of one sample count once where one is more."""
    return max(reasons.get(name, 0) for name in names) / busy if busy else nan
