"""Stand-in for a machine with eight GPUs, as far as they are counted: `PYTHONPATH=tests/gpu/standin`.

The launcher finds a device file. torch counts the devices that CUDA_VISIBLE_DEVICES leaves visible, or HIP_VISIBLE_DEVICES in
a build for ROCm. A process to which a GPU is visible appends its command line to the file STANDIN_LOG.
"""

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

GPUS = 8


class Finder(importlib.abc.MetaPathFinder):
    """Changes two modules once they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = {"torch.cuda": count_devices, "launch.devices": place_device_file}.get(name)
        spec = importlib.machinery.PathFinder.find_spec(name, path) if change else None
        if spec is None or spec.loader is None or change is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def count_devices(cuda: ModuleType) -> None:
    """Have torch.cuda count as it does on a machine with GPUs."""
    cuda.device_count = seen  # type: ignore[attr-defined]
    cuda.is_available = lambda: seen() > 0  # type: ignore[attr-defined]


def place_device_file(devices: ModuleType) -> None:
    """Have the launcher find /dev/nvidia0, in a folder of its own."""
    root = Path(os.environ["STANDIN_LOG"]).parent
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / "nvidia0").touch()
    devices._ROOT = root  # type: ignore[attr-defined]


def seen() -> int:
    """Return how many devices are visible, and note a process that sees some."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if os.environ.get("STANDIN_BUILD") == "hip":
        value = os.environ.get("HIP_VISIBLE_DEVICES", value)
    count = GPUS if value is None else sum(part != "" for part in value.split(","))
    if count:
        with Path(os.environ["STANDIN_LOG"]).open("a") as log:
            log.write(f"{os.getpid()} sees {count}: {' '.join(sys.orig_argv)[:300]}\n")
    return count


sys.meta_path.insert(0, Finder())
