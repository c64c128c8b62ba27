"""GPUs that the ranks of a shared world see."""

import os

import torch

from harness.rank.process_group import World
from tests.running import HIDDEN


def visible(world: World) -> list[object]:
    """Return what rank 0 sees: the variables that hide GPUs, and torch's count."""
    return [{name: os.environ.get(name) for name in HIDDEN}, torch.cuda.device_count()]
