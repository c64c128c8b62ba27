"""The torchrun command of a run: on this host alone, or of one host among several."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.run_dir import RunDir
from launch import start
from launch.task import Task

START = str(Path(start.__file__).absolute())
"""Script that runs a module of reducebench, whatever the current directory contains."""


@dataclass(frozen=True)
class Place:
    """One host's place among several."""

    node: int
    master: str
    """`host:port` of the rendezvous."""
    rendezvous: str = "static"


def command(config: BenchmarkConfig, run_dir: RunDir, task: Task, place: Place | None = None) -> list[str]:
    """Command that starts the ranks of a host; it can be repeated by hand. On one host nothing listens for other hosts."""
    meeting = _meeting(config, run_dir, place) if place and config.torchrun.nnodes > 1 else _one_host(config, place)
    return [
        *(sys.executable, *meeting),
        f"--log-dir={run_dir.scratch('torchrun')}",  # else it leaves an empty one in the folder for temporary files
        f"--nproc-per-node={config.torchrun.nproc_per_node}",
        *(START, "harness.rank", str(run_dir.path), *task.arguments),
    ]


def _one_host(config: BenchmarkConfig, place: Place | None) -> list[str]:
    port = place.master.rpartition(":")[2] if place else config.launcher.master_port
    return [START, "launch.agent", f"--rdzv-endpoint=127.0.0.1:{port}"]


def _meeting(config: BenchmarkConfig, run_dir: RunDir, place: Place) -> list[str]:
    host, _, port = place.master.rpartition(":")
    torchrun = ["-m", "torch.distributed.run", f"--nnodes={config.torchrun.nnodes}"]
    if place.rendezvous == "static":
        return [*torchrun, f"--node-rank={place.node}", f"--master-addr={host}", f"--master-port={port}"]
    first, seconds = place.node == 0, int(config.rendezvous_s)
    meeting = f"is_host={str(first).lower()},join_timeout={seconds},read_timeout={seconds}"
    known_as = [f"--local-addr={host}"] if first else []  # else the others would look for the name that it has for itself
    identity = f"{config.name}.{run_dir.path.name}"
    return [
        *(*torchrun, "--rdzv-backend=c10d", f"--rdzv-endpoint={place.master}", f"--rdzv-id={identity}"),
        *(f"--rdzv-conf={meeting}", *known_as),
    ]


def environment(config: BenchmarkConfig) -> dict[str, str]:
    """The ranks' environment variables: this process's, the thread count, and those of the configuration."""
    threads = {"OMP_NUM_THREADS": str(config.threads_per_rank), LAUNCHER_PID: str(os.getpid())}
    return {**os.environ, **threads, **config.env}
