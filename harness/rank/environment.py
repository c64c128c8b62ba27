"""Where a run happened: versions, devices, hosts, commit, and the environment variables that change numbers or times."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import harness
from harness.axes.workload.base import fingerprint
from harness.rank.material import Material
from harness.rank.process_group import World
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.record import SCHEMA_VERSION

_PREFIXES = ("NCCL_", "GLOO_", "OMP_", "MKL_", "KMP_", "CUDA_", "CUBLAS_", "TORCH_", "PYTORCH_", "SLURM_JOB_ID")


def describe(world: World, materials: Mapping[str, Material]) -> dict[str, Any]:
    """environment.json. All ranks call; rank 0's answer is whole."""
    return {
        "schema_version": SCHEMA_VERSION,
        "argv": _argv(),
        "versions": _versions(),
        "commit": _commit(),
        "world_size": world.size,
        "backend": world.backend,
        "device": world.device.type,
        "ranks": [_rank(text) for text in world.control.all_gather_text(_self(world))],
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "threads_per_rank": torch.get_num_threads(),
        "environment_variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_PREFIXES)},
        "data": {key: _data(material) for key, material in materials.items()},
    }


def _data(material: Material) -> dict[str, Any]:
    """The data set, and the batches in the order in which iterations look back on them."""
    digests = [fingerprint(batch) for batch in material.batches]
    return {"samples": material.data_samples, "sha256": material.data_sha256, "batches_sha256": digests}


def _versions() -> dict[str, str | None]:
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else None
    return {
        "reducebench": harness.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
    }


def _self(world: World) -> str:
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    return f"{socket.gethostname()}\t{os.getpid()}\t{world.device}\t{name}"


def _rank(text: str) -> dict[str, str]:
    return dict(zip(("host", "pid", "device", "device_name"), text.split("\t"), strict=True))


def _commit() -> str | None:
    """Commit of the checkout that the harness runs from, with `-dirty` where files were changed; None outside of one."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment inside another project's checkout is not ours
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _argv() -> list[str]:
    """The user's command: the launcher's, or where the user started the ranks, this process's."""
    try:
        command = Path(f"/proc/{os.environ[LAUNCHER_PID]}/cmdline").read_text(errors="replace")
    except (KeyError, OSError):
        return sys.orig_argv
    return command.rstrip("\0").split("\0")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
