"""The torchrun command of a run: on this host alone, or of one host among several."""

import os
import sys
from dataclasses import dataclass

from harness.schema.config import BenchmarkConfig
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.run_dir import RunDir
from launch.task import Task


@dataclass(frozen=True)
class Place:
    """One host's place among several."""

    node: int
    master: str
    """`host:port` of the rendezvous."""
    rendezvous: str = "static"


def command(config: BenchmarkConfig, run_dir: RunDir, task: Task, place: Place | None = None) -> list[str]:
    """What starts the ranks of a host; it can be repeated by hand. On one host the rendezvous listens for that host alone."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(_meeting(config, run_dir, place) if place else _one_host(config)),
        f"--nproc-per-node={config.torchrun.nproc_per_node}",
        *("-m", "harness.rank", str(run_dir.path), *task.arguments),
    ]


def _one_host(config: BenchmarkConfig) -> list[str]:
    port = config.launcher.master_port
    if port:
        return ["--nnodes=1", "--node-rank=0", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return ["--standalone", "--local-addr=127.0.0.1"]


def _meeting(config: BenchmarkConfig, run_dir: RunDir, place: Place) -> list[str]:
    nodes, (host, _, port) = f"--nnodes={config.torchrun.nnodes}", place.master.rpartition(":")
    if place.rendezvous == "static":
        return [nodes, f"--node-rank={place.node}", f"--master-addr={host}", f"--master-port={port}"]
    first, seconds = place.node == 0, int(config.rendezvous_s)
    meeting = f"is_host={str(first).lower()},join_timeout={seconds},read_timeout={seconds}"
    known_as = [f"--local-addr={host}"] if first else []  # else the others would look for the name that it has for itself
    identity = f"{config.name}.{run_dir.path.name}"
    return [
        *(nodes, "--rdzv-backend=c10d", f"--rdzv-endpoint={place.master}", f"--rdzv-id={identity}"),
        *(f"--rdzv-conf={meeting}", *known_as),
    ]


def environment(config: BenchmarkConfig) -> dict[str, str]:
    """The ranks' environment variables: this process's, the thread count, and those of the configuration."""
    threads = {"OMP_NUM_THREADS": str(config.threads_per_rank), LAUNCHER_PID: str(os.getpid())}
    return {**os.environ, **threads, **config.env}
