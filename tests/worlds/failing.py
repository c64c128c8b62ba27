"""One rank raises while the others wait for it in a collective, in several ways."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn

from harness.rank.agreement import CaseFailedError, together
from harness.rank.guard import Guard
from harness.rank.lifeline import Lifeline
from harness.rank.measured_groups import Sockets, open_sockets, shut_down
from harness.rank.process_group import World
from harness.rank.rescue import Rescue
from harness.tensors import collectives

Step = Callable[[World], object]


def freed(world: World, ways: list[str]) -> dict[str, list[list[Any]]]:
    """Return {way: [[reason of the failure, sum over the group that replaces the broken one] of each rank]}."""
    return {way: _everywhere(world, _failed(world, _WAYS[way])) for way in ways}


def _failed(world: World, step: Step) -> list[Any]:
    try:
        together(world.control, lambda: step(world))
    except CaseFailedError as error:
        world.rebuild_measured()
        one = torch.ones(1)
        together(world.control, lambda: collectives.all_reduce(one, group=world.measured))
        return [str(error), float(one)]
    return ["", 0.0]


def _everywhere(world: World, found: object) -> list[Any]:
    return [json.loads(text) for text in world.control.all_gather_text(json.dumps(found))]


def fails(world: World) -> bool:
    return world.rank == world.size - 1


def fail() -> NoReturn:
    raise MemoryError("planted")


def in_all_reduce(world: World) -> None:
    if fails(world):
        fail()
    dist.all_reduce(torch.ones(1), group=world.measured)


def in_flight(world: World) -> None:
    """The traceback's frames keep the handle of a collective that never ends: a group that is only destroyed waits for it."""
    if fails(world):
        handle = dist.all_reduce(torch.ones(1), group=world.measured, async_op=True)
        assert handle is not None
        fail()
    dist.recv(torch.ones(1), group_src=world.size - 1, group=world.measured)


def in_subgroup(world: World) -> None:
    inside, _ = world.subgroups(world.size)
    if fails(world):
        fail()
    dist.all_reduce(torch.ones(1), group=inside)


class _FailingBackward(torch.autograd.Function):
    """The identity, which raises in backward."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        fail()


class _Failing(nn.Module):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        passed: torch.Tensor = _FailingBackward.apply(inputs)
        return passed


def in_backward(world: World) -> None:
    """DistributedDataParallel: its reducer keeps the group, and has sent the first of two buckets."""
    layers = nn.Sequential(nn.Linear(64, 64), _Failing() if fails(world) else nn.Identity(), nn.Linear(64, 64))
    replica = nn.parallel.DistributedDataParallel(layers, process_group=world.measured, bucket_cap_mb=2**-10)
    replica(torch.ones(1, 64)).sum().backward()


_WAYS: dict[str, Step] = {step.__name__: step for step in (in_all_reduce, in_flight, in_subgroup, in_backward)}


def freed_by_guards(world: World) -> list[list[Any]]:
    """Have the ranks wait in a group that stands for torch's default one, which only the guards can free."""
    before = open_sockets()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=world.deadline_s))
    default: Sockets = {fd: inode for fd, inode in open_sockets().items() if before.get(fd) != inode}

    def step(world: World) -> None:
        if fails(world):
            fail()
        dist.all_reduce(torch.ones(1), group=group)

    with _guarded(world, default):
        found = _failed(world, step)
    dist.destroy_process_group(group)
    return _everywhere(world, found)


@contextmanager
def _guarded(world: World, default: Sockets) -> Iterator[None]:
    """A guard of each rank looks, as in a rank's process, but at once."""
    rescue = Rescue(world.control.attempts, lambda: shut_down(default), world.groups.error, spins=False, asks_some=False)
    guard, line, ended = _guard(world), _lifeline(world), threading.Event()
    guard.miss(line, world.deadline_s)
    guard.heed(world.control.waiting)
    guard.rescue(rescue)

    def watch() -> None:
        while not ended.wait(0.05):
            guard._look()
            guard._watch_others(line)

    watching = threading.Thread(target=watch)
    with patch("harness.rank.rescue.AFTER_S", 0.2):
        watching.start()
        try:
            yield
        finally:
            ended.set()
            watching.join()


def _guard(world: World) -> Guard:
    def leave(why: str, **evidence: object) -> NoReturn:
        raise AssertionError(f"rank {world.rank} would leave: {why} {evidence}")

    return Guard(leave, SimpleNamespace(phase="forward", since=time.monotonic()))


def _lifeline(world: World) -> Lifeline:
    line = Lifeline.open(world.rank, "127.0.0.1")
    line.know(world.control.all_gather_text(line.address))
    return line
