"""Task: which part of a run a world of ranks is to do."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """What the ranks are told beside the run directory."""

    launch: int = 0
    retry: bool = False
    """Whether what failed is done again."""
    accept: bool = False
    """Whether the environment may be another one than when the run began."""
    world: str = ""
    """The world's own name; a launch that goes on has another one."""

    @property
    def arguments(self) -> list[str]:
        """As `harness.rank`, `launch.node` and `launch.batch` take them."""
        return [
            *(["--launch", str(self.launch)] if self.launch else []),
            *(["--retry"] if self.retry else []),
            *(["--accept"] if self.accept else []),
        ]


def add_task(parser: argparse.ArgumentParser) -> None:
    """The options of `arguments`."""
    parser.add_argument("--launch", type=int, default=0, help="which of the run's launches this is, from 0")
    parser.add_argument("--retry", action="store_true", help="do what failed again")
    parser.add_argument("--accept", action="store_true", help="go on also where the environment has changed")


def read_task(parsed: argparse.Namespace, world: str = "") -> Task:
    """What was given."""
    return Task(parsed.launch, parsed.retry, parsed.accept, world)
