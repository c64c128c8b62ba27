"""How many CUDA devices this host shows, asked without importing torch here."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.refusal import RefusedError

WITHOUT_GPU = 2
"""Ranks on a machine without a CUDA device: the least that reduces anything."""
_TIMEOUT_S = 120
_ROOT = Path("/")
_SIGNS = ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*", "dev/dxg")
"""Files of a GPU's driver; dxg is WSL's."""
_AMD, _AMD_NODES = "dev/kfd", "sys/class/kfd/kfd/topology/nodes/*/gpu_id"
"""AMD's driver, and a file for each CPU and GPU that it knows: 0 for a CPU."""
_NVML = "libnvidia-ml.so.1"
"""A library of NVIDIA's driver. After a boot the files above may be missing until a process uses a GPU."""


def default_ranks(device: str | None, variables: Mapping[str, str] | None = None) -> int:
    """Ranks of a node when the user names no number."""
    return (0 if device == "cpu" else visible_gpus(variables)) or WITHOUT_GPU


def visible_gpus(variables: Mapping[str, str] | None = None) -> int:
    """CUDA devices (of ROCm, HIP devices) that a rank would see, with these environment variables of the configuration.

    CUDA_VISIBLE_DEVICES and the like count. Torch is not asked on a host without a GPU's driver.
    """
    if not _has_driver():
        return 0
    command = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        environment = {**os.environ, **(variables or {})}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0


def _has_driver() -> bool:
    if any(any(_ROOT.glob(sign)) for sign in _SIGNS) or _has_amd_gpu():
        return True
    try:
        ctypes.CDLL(_NVML)
    except OSError:
        return False
    return True


def _has_amd_gpu() -> bool:
    """AMD's driver is there, and knows a GPU, or does not show what it knows."""
    if not (_ROOT / _AMD).exists():
        return False
    try:
        nodes = [path.read_text().strip() for path in _ROOT.glob(_AMD_NODES)]
    except OSError:
        return True
    return not nodes or any(node != "0" for node in nodes)


def check_ranks(config: BenchmarkConfig, ranks: int) -> None:
    """Raises RefusedError when NCCL would have to put two of a node's ranks on one GPU, or CUDA is asked for and not there."""
    if config.device == "cpu":
        return
    gpus = visible_gpus(config.env)
    if not gpus and config.nvtx:
        raise RefusedError("nvtx=true: this host shows no GPU; accepted: nvtx=true on a host with one; try profile=true")
    if not gpus and config.device == "auto" and config.backend != "nccl":
        return
    if not gpus:
        raise RefusedError(f"device={config.device}, backend={config.backend}: this host shows no CUDA device")
    shared = config.env.get("NCCL_MULTI_RANK_GPU_ENABLE", os.environ.get("NCCL_MULTI_RANK_GPU_ENABLE")) == "1"
    if config.backend != "gloo" and ranks > gpus and not shared:
        raise RefusedError(
            f"torchrun.nproc_per_node={ranks}: nccl takes one rank a GPU, and {gpus} are visible; backend=gloo shares them"
        )
