"""Versions of what computes and of what communicates."""

import ctypes
import platform
import re
from pathlib import Path

import torch

import harness

_MAPS = Path("/proc/self/maps")


def versions() -> dict[str, str | None]:
    """By name; None where there is none."""
    return {
        "reducebench": harness.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "nccl": (_loaded_nccl() or _built_with_nccl()) if torch.cuda.is_available() else None,
        "cudnn": str(torch.backends.cudnn.version() or "") or None,
    }


def _loaded_nccl() -> str | None:
    """Version of the NCCL library in this process, on ROCm of RCCL: with LD_PRELOAD it differs from torch's own."""
    try:
        path = re.search(r"/\S*lib[nr]ccl\.so\S*", _MAPS.read_text())
        number = ctypes.c_int()
        if path is None or ctypes.CDLL(path[0]).ncclGetVersion(ctypes.byref(number)):
            return None
    except (OSError, AttributeError):  # no /proc; removed since; another library of that name
        return None
    return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"


def _built_with_nccl() -> str | None:
    found = torch.cuda.nccl.version()
    return ".".join(map(str, found)) if found else None
