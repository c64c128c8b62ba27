"""Memory of a stretch of work: allocated device memory on CUDA, resident set on the CPU."""

import ctypes
import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from harness.schema.processes import UNSEEN

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_GROUP = Path("/sys/fs/cgroup")
_UNKNOWN = 2**62
"""Bytes where the system does not tell: the allocator will."""


@dataclass(frozen=True)
class DeviceMemory:
    """The caching allocator of a CUDA device during a stretch of work."""

    reserved_bytes: int
    """The most that it held of the device, its cache included."""
    alloc_retries: int
    """Allocations that succeeded only after it had returned its cache."""


class Meter:
    """What a stretch of work takes at its peak, above what was there before it."""

    def __init__(self, device: torch.device) -> None:
        _give_back()
        self._device = device
        self._before = bytes_now(device)
        self._told = reset_peak(device)
        self._retries = _alloc_retries(device)

    def taken(self, peak: int) -> int:
        """Bytes, at this peak; 0 where the system does not tell."""
        return max(0, peak - self._before) if self._told else 0

    def on_device(self, reserved: int) -> DeviceMemory | None:
        """The allocator since then, with the most that it reserved; None on the CPU."""
        if self._device.type != "cuda":
            return None
        return DeviceMemory(reserved, _alloc_retries(self._device) - self._retries)


def _alloc_retries(device: torch.device) -> int:
    """So far; 0 on the CPU."""
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0)) if device.type == "cuda" else 0


def reset_peak(device: torch.device) -> bool:
    """Forget the peak so far; False where the system does not let us: the peak is then that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set ("high water mark")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def peak_bytes(device: torch.device) -> int:
    """The peak since the last reset, in bytes; 0 where the system does not tell it."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _peak_resident()


def peak_reserved_bytes(device: torch.device) -> int:
    """Most bytes that the caching allocator reserved since the last reset; 0 on the CPU."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


def available_bytes(device: torch.device, ranks: int) -> int:
    """Bytes that each of `ranks` on the device, or on this host's memory, could still take: an equal share of what is free.

    What the caching allocator holds unused is free for this rank alone.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) // ranks + unused
    return min(_available(), _left_in_group()) // ranks


def _available() -> int:
    """Return the memory in bytes that this host can give without swapping."""
    try:
        return int(psutil.virtual_memory().available)
    except (OSError, ValueError):
        return _UNKNOWN


def _left_in_group() -> int:
    """Of the memory limit of this process's control group, where it has one (cgroup v2)."""
    try:
        limit, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return _UNKNOWN
    return _UNKNOWN if limit == "max" else max(0, int(limit) - int(used))


def bytes_now(device: torch.device) -> int:
    """As peak_bytes, of this moment."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _resident()


def _resident() -> int:
    try:
        return int(psutil.Process().memory_info().rss)
    except UNSEEN:
        return 0


def _peak_resident() -> int:
    """Return the peak resident set of this process since the last reset. psutil has no such figure on Linux."""
    try:
        lines = [line.split() for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return int(lines[0][1]) * 1024 if lines else 0


@cache
def _freeze_modules() -> None:
    """What importing has left is never garbage: looking through it costs a tenth of a second each time."""
    gc.collect()
    gc.freeze()


def _give_back() -> None:
    """What Python and malloc hold of earlier work would be taken a second time, unseen."""
    _freeze_modules()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)
