"""Versions of what computes and of what communicates."""

import platform

import torch

import harness


def versions() -> dict[str, str | None]:
    """By name; None where there is none."""
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "reducebench": harness.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "cudnn": str(torch.backends.cudnn.version() or "") or None,
    }
