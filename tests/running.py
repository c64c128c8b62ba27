"""Real processes for tests: the launcher, torchrun, and the look for what they leave behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.torchrun import START

ROOT = Path(__file__).parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")
"""The user's own."""
AGENT = (sys.executable, START, "launch.agent", "--rdzv-endpoint=127.0.0.1:0")
"""The launcher's, on one host."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONWARNINGS": "default"}
HIDDEN = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "")
"""Variables that hide the GPUs of NVIDIA and of AMD from torch."""
HANG_S = 900.0
"""What takes longer hangs, also on a machine that is a few times slower than a good one."""
BEGUN_S = 300.0
"""Until something has begun, on a machine that is busy."""
ENDED_S = 120.0
"""Until something that is told to end has ended. How long it takes is a figure of `make chaos`."""
ORPHANS_S = 60.0
"""After the end of a run, until no process of it is left. How long they take is a figure of `make chaos`."""


def launch(*overrides: str, cwd: Path = ROOT, timeout: float = HANG_S) -> subprocess.CompletedProcess[str]:
    """`python -m launch` to its end."""
    return _run(sys.executable, "-m", "launch", *overrides, cwd=cwd, timeout=timeout)


def report(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m harness.report` to its end."""
    return _run(sys.executable, "-m", "harness.report", *arguments, cwd=ROOT, timeout=HANG_S)


def torchrun(ranks: int, *arguments: str, cwd: Path = ROOT, timeout: float = HANG_S) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node=RANKS ...` to its end."""
    return _run(*TORCHRUN, f"--nproc-per-node={ranks}", *arguments, cwd=cwd, timeout=timeout)


def start_launch(*overrides: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    """`python -m launch`, left running."""
    command = (sys.executable, "-m", "launch", *overrides)
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_until(happened: Callable[[], bool], seconds: float) -> bool:
    """Whether it happened in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.05)
    return happened()


def processes_of(path: Path) -> dict[int, str]:
    """Living processes whose command line names `path`: pid to command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(path) in line:
                found[int(entry.name)] = line
    return found


def is_rank(line: str) -> bool:
    """True if the command line is that of a rank that the launcher's torchrun has started."""
    return " harness.rank " in line and " launch.agent " not in line


def _run(*command: str, cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False)
