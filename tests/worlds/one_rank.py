"""Collectives that one rank calls alone, beside those of the control group."""

import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from harness.rank.agreement import CaseFailedError, together
from harness.rank.process_group import World
from harness.rank.whereabouts import Place, place_now
from tests.options import CONFIG


def seen(world: World) -> dict[str, Any]:
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=1))
    try:
        return {
            "sums": _beside_the_control_group(world),
            "deadline_s": CONFIG.deadline_s,
            "default_timeout_s": _timeout_s(),
            **_alone(world, group),
        }
    finally:
        dist.destroy_process_group(group)


def _beside_the_control_group(world: World) -> list[float]:
    """Rank 0 calls first; the other one after both have used the control group."""
    own = torch.tensor(world.rank + 1.0)
    work = dist.all_reduce(own, async_op=True) if world.rank == 0 else None
    world.control.meet()
    world.control.all_gather(torch.tensor(1.0))
    if work is None:
        dist.all_reduce(own)
    else:
        work.wait()
    return [float(value) for value in world.control.all_gather(own)]


def _timeout_s() -> float:
    backend = dist.GroupMember.WORLD._get_backend(torch.device("cpu"))
    return float(backend.options._timeout.total_seconds())


def _alone(world: World, group: dist.ProcessGroup) -> dict[str, str]:
    """Return the position of rank 0 while it waits alone, and the messages of all ranks after its timeout."""
    failure, places = "", list[Place]()
    ended = threading.Event()
    watch = threading.Thread(target=lambda: places.extend(_looks_until(ended)))
    if world.rank == 0:
        watch.start()
    try:
        together(world.control, lambda: alone(group) if world.rank == 0 else None)
    except CaseFailedError as error:
        failure = str(error)
        world.rebuild_measured()
    ended.set()
    if world.rank == 0:
        watch.join()
    in_control = list[Place]()
    watch = threading.Thread(target=lambda: in_control.extend(_looks(5)))
    watch.start()
    if world.rank == 1:
        watch.join()
    world.control.meet()  # rank 0 waits here for the other
    watch.join()
    return {
        "failure": failure,
        "stands": next((str(place) for place in places if place.collective), ""),
        "control": next((str(place) for place in in_control if place.collective), ""),
    }


def _looks_until(ended: threading.Event) -> list[Place]:
    """Look until a collective is seen, or what is looked at has ended."""
    found = list[Place]()
    while not ended.is_set() and not any(place.collective for place in found):
        found += _looks(1)
    return found


def _looks(times: int) -> list[Place]:
    found = []
    for _ in range(times):
        found.append(place_now())
        time.sleep(0.02)
    return found


def alone(group: dist.ProcessGroup) -> None:
    """Call what no other rank calls."""
    dist.all_reduce(torch.zeros(1), group=group)
