"""A world of two ranks in which something is measured."""

import subprocess
import sys

import torch

from harness.rank.process_group import World
from tests.running import ENVIRONMENT, ROOT, TORCHRUN


def print_of_world(module: str) -> None:
    """Run `module` on two ranks, and print what it prints."""
    command = (*TORCHRUN, "--nproc-per-node=2", "-m", module)
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    sys.stdout.write(done.stdout)


def median_of_slowest(world: World, seconds: list[float]) -> float:
    """Over iterations. All ranks call alike."""
    ranks = torch.stack(world.control.all_gather(torch.tensor(seconds, dtype=torch.float64)))
    return float(ranks.amax(0).median())
