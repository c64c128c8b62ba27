"""Peak memory of a stretch of work: allocated device memory on CUDA, resident set on the CPU."""

from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set ("high water mark")
    except OSError:  # not Linux, or not allowed: the peak is then that of the process
        return


def peak_bytes(device: torch.device) -> int:
    """The peak since the last reset, in bytes; 0 where the system does not tell it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    except OSError:
        return 0
    return int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
