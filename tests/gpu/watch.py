"""Run a command, and state if a GPU was used meanwhile: `python -m tests.gpu.watch COMMAND...`

Exit status: that of the command; 3 where the command passes and a GPU was used. A GPU counts as used where NVML lists a compute
process that was not there before, or more memory is in use. Another user of the GPU counts too: run it on an idle one.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

USED = 3
_EVERY_S = 0.5
_SLACK_BYTES = 64 * 2**20
"""A context of CUDA takes several hundred MiB."""


@dataclass(frozen=True)
class Use:
    """Use of one GPU."""

    memory_bytes: int
    pids: frozenset[int]


def main(command: list[str]) -> int:
    nvml = open_nvml()
    if nvml is None:
        print("skipped line: NVML lists the processes on the GPUs (no NVML on this machine)", flush=True)
        return subprocess.run(command, check=False).returncode
    before, found = uses(nvml), set[str]()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            found |= set(changes(before, uses(nvml)))
            time.sleep(_EVERY_S)
    print("\n".join(sorted(found)) or f"no GPU of {len(before)} was used", flush=True)
    return process.returncode or (USED if found else 0)


def open_nvml() -> Any:
    """Return pynvml, or None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def uses(nvml: Any) -> list[Use]:
    """Return what each GPU is used for now."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    pids = [frozenset(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)) for handle in handles]
    memory = [nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles]
    return [Use(*use) for use in zip(memory, pids, strict=True)]


def changes(before: list[Use], now: list[Use]) -> Iterator[str]:
    """Yield a line for each sign that a GPU is used."""
    for index, (old, new) in enumerate(zip(before, now, strict=True)):
        if new.pids - old.pids:
            yield f"GPU {index} was used: {len(new.pids - old.pids)} more compute processes"
        if new.memory_bytes > old.memory_bytes + _SLACK_BYTES:
            yield f"GPU {index} was used: more memory than before is in use"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
