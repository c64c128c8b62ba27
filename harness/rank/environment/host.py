"""Host: what a machine is, and how it is set, from the files of its kernel."""

import contextlib
import os
import platform
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.rank.environment.files import cpu_list, keyed, number, spell_cpus, text

_UNLIMITED = "max"


@dataclass(frozen=True)
class Host:
    """One machine, by the files below `root`. What it does not tell is None."""

    root: Path = Path("/")

    def facts(self) -> dict[str, Any]:
        """What stays as it is during a run, and how busy the machine was before it."""
        return {
            "host": socket.gethostname(),
            "boot_id": text(self._proc / "sys/kernel/random/boot_id"),
            "kernel": platform.release(),
            "libc": _libc(),
            "cpu": self.model(),
            "cpus": os.cpu_count(),
            "memory_bytes": self._memory(),
            "governors": self.governors(),
            "turbo": self.turbo(),
            "max_mhz": _mega(number(self._cpu / "cpu0/cpufreq/cpuinfo_max_freq")),
            "cpu_quota": self.quota(),
            "numa": {str(node): spell_cpus(cpus) for node, cpus in self.numa().items()},
            "load_average": self._load(),
        }

    def model(self) -> str | None:
        """Of the processor."""
        return keyed(self._proc / "cpuinfo", ":").get("model name") or platform.processor() or None

    def governors(self) -> dict[str, int]:
        """Frequency governor to the number of CPUs that it rules; empty where the machine shows none, as most virtual ones."""
        found = (text(path) for path in self._cpu.glob("cpu[0-9]*/cpufreq/scaling_governor"))
        return dict(Counter(name for name in found if name))

    def turbo(self) -> bool | None:
        """Whether the clock may rise above its rated frequency."""
        off, boost = number(self._cpu / "intel_pstate/no_turbo"), number(self._cpu / "cpufreq/boost")
        return not off if off is not None else None if boost is None else bool(boost)

    def mhz(self) -> float | None:
        """What the CPU that this process is on runs at now. No other is asked: some kernels take milliseconds."""
        _, _, fields = (text(self._proc / "self/stat") or "").rpartition(")")
        last = dict(enumerate(fields.split(), 3)).get(39)  # numbered as in proc(5), from the third
        return _mega(number(self._cpu / f"cpu{last}/cpufreq/scaling_cur_freq"))

    def throttles(self) -> int | None:
        """How often cores were slowed down for their heat, since the machine started."""
        counts = [number(path) for path in self._cpu.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")]
        return sum(filter(None, counts)) if counts else None

    def numa(self) -> dict[int, set[int]]:
        """NUMA node to its CPUs."""
        nodes = sorted(self._sys.glob("devices/system/node/node[0-9]*"), key=lambda path: int(path.name[4:]))
        return {int(path.name[4:]): cpu_list(text(path / "cpulist")) for path in nodes}

    def numa_of(self, cpus: set[int]) -> list[int]:
        """The nodes that these CPUs stand on."""
        return [node for node, own in self.numa().items() if own & cpus]

    def numa_of_pci(self, address: str) -> int | None:
        """The node that a PCI device stands on, by its address: `0000:17:00.0`."""
        node = number(self._sys / "bus/pci/devices" / address / "numa_node")
        return None if node is None or node < 0 else node

    def quota(self) -> float | None:
        """Cores' time that the control groups of this process allow, the least of all; None where none limits it."""
        limits = [limit for folder in self._groups() for limit in (_quota_2(folder), _quota_1(folder)) if limit is not None]
        return min(limits, default=None)

    def throttled_by_quota(self) -> int | None:
        """How often a control group of this process had used up its quota."""
        counts = [keyed(folder / "cpu.stat").get("nr_throttled") for folder in self._groups()]
        found = [int(count) for count in counts if count is not None and count.isdigit()]
        return max(found, default=None)

    def _groups(self) -> Iterator[Path]:
        """Folders of the control groups that rule this process's CPU time; a container may not show all of them."""
        for line in (text(self._proc / "self/cgroup") or "").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                top = self._sys / "fs/cgroup" / controllers
                own = top / path.strip("/")
                yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top) and folder.is_dir())

    def _memory(self) -> int | None:
        total = keyed(self._proc / "meminfo", ":").get("MemTotal", "").split()
        return int(total[0]) * 1024 if total else None

    def _load(self) -> list[float] | None:
        words = (text(self._proc / "loadavg") or "").split()
        return [float(word) for word in words[:3]] or None

    @property
    def _proc(self) -> Path:
        return self.root / "proc"

    @property
    def _sys(self) -> Path:
        return self.root / "sys"

    @property
    def _cpu(self) -> Path:
        return self._sys / "devices/system/cpu"


def _quota_2(folder: Path) -> float | None:
    quota, _, period = (text(folder / "cpu.max") or _UNLIMITED).partition(" ")
    return None if quota == _UNLIMITED else int(quota) / int(period)


def _quota_1(folder: Path) -> float | None:
    quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _libc() -> str | None:
    with contextlib.suppress(ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION")
    return None


def _mega(kilo: int | None) -> float | None:
    return None if kilo is None else kilo / 1e3
