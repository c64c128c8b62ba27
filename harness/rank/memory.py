"""Memory of a stretch of work: allocated device memory on CUDA, resident set on the CPU."""

import ctypes
import gc
from functools import cache
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Meter:
    """What a stretch of work takes at its peak, above what was there before it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        _give_back()
        self._before = _now(device)
        self._told = reset_peak(device)

    @property
    def taken(self) -> int:
        """Bytes, at the peak since the last reset_peak; 0 where the system does not tell."""
        return max(0, peak_bytes(self._device) - self._before) if self._told else 0


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
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _now(device: torch.device) -> int:
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _status("VmRSS")


def _status(field: str) -> int:
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    except OSError:
        return 0
    return int(fields.get(field, "0 kB").split()[0]) * 1024


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
