"""The torchrun command of a run on this host."""

import os
import sys

from harness.schema.config import BenchmarkConfig
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.run_dir import RunDir


def command(config: BenchmarkConfig, run_dir: RunDir, launch: int = 0) -> list[str]:
    """What starts the ranks; it can be repeated by hand. The rendezvous listens for this host alone."""
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={config.torchrun.nproc_per_node}"),
        *("-m", "harness.rank", str(run_dir.path), *(["--launch", str(launch)] if launch else [])),
    ]


def environment(config: BenchmarkConfig) -> dict[str, str]:
    """The ranks' environment variables: this process's, the thread count, and those of the configuration."""
    threads = {"OMP_NUM_THREADS": str(config.threads_per_rank), LAUNCHER_PID: str(os.getpid())}
    return {**os.environ, **threads, **config.env}
