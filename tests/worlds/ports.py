"""Which processes a world consists of, and what they were started with."""

import os

import torch

from harness.rank.process_group import World


def processes(world: World) -> list[int]:
    """Pids of torchrun, and of the ranks in their order."""
    return [os.getppid(), *(int(pid) for pid in world.control.all_gather(torch.tensor(os.getpid())))]


def interface(world: World) -> str:
    """Interface on which gloo listens, as the environment names it."""
    return os.environ.get("GLOO_SOCKET_IFNAME", "")
