"""launch=slurm: the run as a batch job. Its script lies in the run directory; the job is followed to its end.

This is the part outside the job: it reads the run directory and the job's state. See launch.batch for the part inside.
"""

import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Slurm
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.patience import SEEN_S
from launch.rest import POLL_S, rest
from launch.supervise import Watch
from launch.task import Task

_LIVING = (
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
)
_JOB = re.compile(r"\d[\w.+\[\]-]*", re.ASCII)
UNKNOWN = "UNKNOWN"
"""The state of a job of which Slurm's controller says nothing."""
_UNKNOWN_S = 300.0
"""How long the controller may be away."""


def script(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> str:
    """The batch script. A user may edit it, and submit it once more by hand."""
    launcher = launcher_of(config)
    wanted = {
        "job-name": f"reducebench-{config.name}",
        "nodes": config.torchrun.nnodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus(config),
        "gpus-per-node": launcher.gpus_per_node or "",
        "partition": launcher.partition,
        "account": launcher.account,
        "time": launcher.time,
        "output": _escaped(run_dir.ranks.log("slurm")),
        "open-mode": "append",
    }
    lines = [f"#SBATCH --{key}={shlex.quote(str(value))}" for key, value in wanted.items() if value != ""]
    lines += [line for line in launcher.extra_lines if line.startswith("#SBATCH")]  # sbatch reads them before the first command
    inside = shlex.join([python_of(launcher), "-m", "launch.batch", str(run_dir.path), *task.arguments])
    before = [line for line in launcher.extra_lines if not line.startswith("#SBATCH")]
    return "\n".join(["#!/bin/bash", *lines, *before, f"cd {shlex.quote(str(Path.cwd()))} || exit", f"exec {inside}", ""])


def submit(run_dir: RunDir) -> str:
    """The number of the job that sbatch makes of the script. Raises RefusedError with what sbatch says."""
    done = _asked("sbatch", "--parsable", str(run_dir.batch_script))
    if done.returncode:
        raise RefusedError(f"launch=slurm: sbatch: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


def follow(job: str, launcher: Slurm, watch: Watch, received: list[str]) -> str:
    """Watch a job to its end; returns its end state. A signal in `received` cancels it, a second one leaves it alone."""
    cancelled, seen = False, time.monotonic()
    while True:
        state = job_state(job)
        seen = seen if state == UNKNOWN else time.monotonic()
        if state not in (*_LIVING, UNKNOWN) or time.monotonic() - seen > _UNKNOWN_S or len(received) > 1:
            return state
        known = len(received)
        if known and not cancelled:
            cancelled = True
            _asked("scancel", job)
        watch()
        rest(launcher.poll_s, received, known)


def check_no_job(run_dir: RunDir) -> None:
    """Raises RefusedError where a batch job works on the run, or waits for its turn."""
    job = run_dir.ranks.job()
    state = job_state(job) if _JOB.fullmatch(job) else ""  # the file may come from another user: pass no option to scontrol
    if state in _LIVING:
        raise RefusedError(f"{run_dir.path} is the work of job {job}, which is {state.lower()}: let it end, or scancel {job}")


def verdict(run_dir: RunDir) -> tuple[int | None, list[str]]:
    """What the job left; waited for, as the nodes' files may be seen here late."""
    deadline = time.monotonic() + SEEN_S
    while run_dir.ranks.verdict()[0] is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return run_dir.ranks.verdict()


def job_state(job: str) -> str:
    """PENDING, RUNNING, COMPLETED ..., as Slurm's controller knows it; UNKNOWN where it does not answer."""
    done = _asked("scontrol", "show", "job", "-o", job)
    found = re.search(r"\bJobState=(\w+)", done.stdout)
    if found:
        return found.group(1)
    return "FORGOTTEN" if "Invalid job id" in done.stderr else UNKNOWN


def _asked(*command: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def cpus(config: BenchmarkConfig) -> int:
    """Of a node. srun is told again: since Slurm 22.05 it takes no number of the job's over."""
    return launcher_of(config).cpus_per_task or (config.torchrun.nproc_per_node or 1) * config.threads_per_rank


def launcher_of(config: BenchmarkConfig) -> Slurm:
    """What a job needs."""
    assert isinstance(config.launcher, Slurm)
    return config.launcher


def python_of(launcher: Slurm) -> str:
    """The nodes' interpreter."""
    return launcher.python or sys.executable


def _escaped(path: Path) -> str:
    """sbatch takes a percent sign for one of its own marks."""
    return str(path).replace("%", "%%")
