"""World of two ranks in which a part measures.

`torchrun --nproc-per-node=2 -m tests.bench.world tests.bench.step:measure 10` calls `measure(10)` on each rank.
"""

import sys
from importlib import import_module

import torch

from harness.rank.process_group import World
from tests.running import torchrun

LIMIT_S = 3600.0


def print_of_world(function: str, *arguments: int) -> None:
    """Call `function`, written as module:name, on two ranks, and print their output."""
    done = torchrun(2, "-m", "tests.bench.world", function, *map(str, arguments), timeout=LIMIT_S)
    if done.returncode:
        sys.exit(done.stderr)
    sys.stdout.write(done.stdout)


def main(function: str, *arguments: str) -> None:
    """Call `function` on this rank; all its arguments are integers."""
    module, name = function.split(":")
    getattr(import_module(module), name)(*map(int, arguments))


def median_of_slowest(world: World, seconds: list[float]) -> float:
    """Median over iterations of the slowest rank's time, in seconds. All ranks pass the same number of iterations."""
    ranks = torch.stack(world.control.all_gather(torch.tensor(seconds, dtype=torch.float64)))
    return float(ranks.amax(0).median())


if __name__ == "__main__":
    main(*sys.argv[1:])
