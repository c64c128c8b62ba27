"""Gpu: what NVML, the driver's library, tells of the device of a rank. What it does not tell is None."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import torch

from harness.rank.environment.host import Host
from harness.rank.environment.nvml import ask, find_device, is_idle, reason_bits, slowdowns, start_nvml
from harness.schema.processes import UNSEEN, name_of

_LINKS = ("INTERNAL", "SINGLE", "MULTIPLE", "HOSTBRIDGE", "NODE", "SYSTEM")
"""From one board to across sockets: NVML_TOPOLOGY_*; nvidia-smi's PIX is SINGLE, PXB MULTIPLE, PHB HOSTBRIDGE."""


@dataclass(frozen=True)
class Gpu:
    """One device, as NVML knows it."""

    nvml: Any
    handle: Any

    @classmethod
    def of(cls, device: torch.device) -> "Gpu | None":
        """The device of a rank; None on the CPU, and where there is no NVML."""
        if device.type != "cuda" or torch.version.cuda is None:
            return None
        nvml = start_nvml()  # not on the CPU: ranks start sooner without it
        handle = find_device(nvml, str(torch.cuda.get_device_properties(device).uuid)) if nvml is not None else None
        return None if handle is None else cls(nvml, handle)

    def facts(self) -> dict[str, Any]:
        """What stays as it is."""
        nvml, address = self.nvml, self._address()
        return {
            "driver": ask(nvml, nvml.nvmlSystemGetDriverVersion),
            "pci": address,
            "numa_node": Host().numa_of_pci(address) if address else None,
            "max_sm_mhz": self._ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
            "max_memory_mhz": self._ask(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
            "power_limit_w": _thousandth(self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit)),
        }

    def state(self) -> dict[str, Any]:
        """State that changes: clocks, reasons for lower ones, load, temperature."""
        nvml = self.nvml
        used, bits = self._ask(nvml.nvmlDeviceGetUtilizationRates), reason_bits(nvml, self.handle)
        return {
            "sm_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "memory_mhz": self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            "slowed_by": None if bits is None else slowdowns(nvml, bits),
            "idle": None if bits is None else is_idle(nvml, bits),
            "slowed_s": self._slowed(),
            "temperature_c": self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "utilization_percent": None if used is None else used.gpu,
        }

    def processes(self) -> list[dict[str, Any]] | None:
        """What computes on the device, this process among it: pid, name, bytes of device memory."""
        found = self._ask(self.nvml.nvmlDeviceGetComputeRunningProcesses)
        if found is None:
            return None
        return [{"pid": one.pid, "name": self._name(one.pid), "bytes": one.usedGpuMemory} for one in found]

    def own_bytes(self) -> int | None:
        """Device memory of this process: torch's allocator, NCCL, cuBLAS and the CUDA context. None where NVML does not know.

        Where pids are another namespace's, another process may have this one's pid: less than torch has reserved is not ours.
        """
        own = [one["bytes"] for one in self.processes() or [] if one["pid"] == os.getpid()]
        known = sum(own) if own and None not in own else None
        return None if known is None or known < torch.cuda.memory_reserved() else known

    def topology(self) -> dict[str, Any]:
        """All devices of the host, by NVML's index, and by what each pair of them is joined."""
        nvml = self.nvml
        handles = [
            ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
            for index in range(ask(nvml, nvml.nvmlDeviceGetCount, otherwise=0))
        ]
        return {
            "uuids": [ask(nvml, nvml.nvmlDeviceGetUUID, handle) for handle in handles],
            "links": {f"{a}-{b}": self._link(handles[a], handles[b]) for a, b in combinations(range(len(handles)), 2)},
        }

    def _address(self) -> str | None:
        """On the PCI bus, as the kernel spells it; NVML gives the domain eight digits, the kernel four."""
        pci = self._ask(self.nvml.nvmlDeviceGetPciInfo)
        return None if pci is None else pci.busId.lower()[-len("0000:00:00.0") :]

    def _link(self, one: object, other: object) -> str | None:
        nvml = self.nvml
        joined = ask(nvml, nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if joined == nvml.NVML_P2P_STATUS_OK:
            return "NVLINK"
        level = ask(nvml, nvml.nvmlDeviceGetTopologyCommonAncestor, one, other)
        return next((name for name in _LINKS if getattr(nvml, f"NVML_TOPOLOGY_{name}") == level), None)

    def _slowed(self) -> dict[str, float | None]:
        """Seconds, since the driver was loaded, in which the clocks of the device were reduced."""
        nvml = self.nvml
        policies = {"power": nvml.NVML_PERF_POLICY_POWER, "heat": nvml.NVML_PERF_POLICY_THERMAL}
        held = {name: self._ask(nvml.nvmlDeviceGetViolationStatus, policy) for name, policy in policies.items()}
        return {name: None if status is None else status.violationTime / 1e9 for name, status in held.items()}

    def _name(self, pid: int) -> str | None:
        """The kernel's; where the process lives elsewhere, the file that NVML names, without its arguments."""
        name = _kernel_name(pid)
        path = None if name else ask(self.nvml, self.nvml.nvmlSystemGetProcessName, pid)
        return Path(path.split()[0]).name if path else name

    def _ask(self, question: Callable[..., Any], *arguments: object) -> Any:
        return ask(self.nvml, question, self.handle, *arguments)


def _kernel_name(pid: int) -> str | None:
    try:
        return name_of(psutil.Process(pid))
    except UNSEEN:
        return None


def torch_facts(device: torch.device) -> dict[str, Any]:
    """What torch tells of a CUDA device, and the visible devices that it reaches without the host."""
    properties = torch.cuda.get_device_properties(device)
    others = [other for other in range(torch.cuda.device_count()) if other != device.index]
    return {
        "device_name": properties.name,
        "uuid": str(getattr(properties, "uuid", "")) or None,  # ROCm has none
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "peers": [other for other in others if torch.cuda.can_device_access_peer(device, other)],
    }


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1e3
