"""`python -m launch.batch RUN_DIR`: what the launcher does elsewhere, inside a batch job, on its first node.

It brings up a world with srun, watches it, and starts it again for what remains; it leaves its verdict in the run directory.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.terminal import reader_may_leave
from launch.job import run_all
from launch.resume import undone_launches
from launch.slurm import cpus, launcher_of, python_of
from launch.supervise import Start
from launch.task import Task, add_task, read_task
from launch.verdict import FAILURE, REFUSAL, Verdict

PORT = 29400
"""Of the rendezvous; another job's ranks on the same first node would have another one, by their job's number."""
_PORTS = 1000


@reader_may_leave()
def main() -> int:
    """The batch job's own process."""
    parser = argparse.ArgumentParser(prog="python -m launch.batch", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    add_task(parser)
    arguments = parser.parse_args()
    run_dir = RunDir.open(arguments.run_dir)
    try:
        with run_dir.occupied():
            config, task = run_dir.config(), read_task(arguments)
            launches = undone_launches(run_dir, config) if task.retry else range(config.launches)
            verdict = run_all(config, run_dir, task, srun, lambda done: None, launches)
            run_dir.remove_scratch()
    except RefusedError as error:
        verdict = Verdict(REFUSAL, (str(error),))
    except (OSError, subprocess.SubprocessError) as error:  # scontrol that does not answer, a disk that is full
        verdict = Verdict(FAILURE, (f"{type(error).__name__}: {error}",))
    run_dir.ranks.write_verdict(verdict.status, verdict.lines)
    return verdict.status


def srun(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> list[Start]:
    """One process a node, inside a job: each finds its place in SLURM_NODEID."""
    launcher = launcher_of(config)
    first = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    port = launcher.master_port or PORT + int(os.environ["SLURM_JOB_ID"]) % _PORTS
    nodes = config.torchrun.nnodes
    shape = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus(config)}"]
    node = [
        launcher.container_python or python_of(launcher),
        "-m",
        "launch.node",
        str(run_dir.path),
        "--master",
        f"{first}:{port}",
        "--world",
        task.world,
    ]
    command = ["srun", "--kill-on-bad-exit=0", *shape, *launcher.container, *node, *task.arguments]
    return [Start(command, dict(os.environ), "srun")]


if __name__ == "__main__":
    sys.exit(main())
