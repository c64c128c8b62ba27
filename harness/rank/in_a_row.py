"""Several calls in a row between two clock reads, as nccl-tests times them: on the host, on the device, and by a CUDA graph."""

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter

import torch

from harness.probes.base import Way
from harness.rank.clock import CUDA_BACK_TO_BACK, CUDA_GRAPH, HOST_BACK_TO_BACK
from harness.rank.process_group import World
from harness.rank.queued import NOT_AHEAD, QueuedStopwatch, aligning

_CALLS = "calls"
_GLOO = "gloo's collectives of CUDA tensors make the host wait for the device"
_LAUNCH_S = 1e-4
"""Likely time to launch a call, before one was seen."""


def ways(world: World, call: Callable[[], None], count: int) -> Iterator[Way]:
    """Ways of timing `count` calls in a row on this world; each is used up before the next one. All ranks call alike."""
    repeated = partial(_repeat, call, count)
    if world.device.type != "cuda" or world.backend != "nccl":
        yield Way(HOST_BACK_TO_BACK, partial(_on_host, world, repeated, count))
    if world.device.type != "cuda":
        return
    if world.backend != "nccl":
        yield from (Way(clock, None, _GLOO) for clock in (CUDA_BACK_TO_BACK, CUDA_GRAPH))
        return
    yield Way(CUDA_BACK_TO_BACK, _on_device(world, repeated, count), NOT_AHEAD)
    graph, reason = _capture(world, repeated)
    if graph is None:
        yield Way(CUDA_GRAPH, None, reason)
        return
    yield Way(CUDA_GRAPH, _on_device(world, graph.replay, count), NOT_AHEAD)
    torch.cuda.synchronize(world.device)
    graph.reset()  # NCCL waits for graphs that hold its kernels when a group is destroyed


def _repeat(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def _on_host(world: World, repeated: Callable[[], None], count: int) -> float:
    world.control.meet()
    start = perf_counter()
    repeated()
    return (perf_counter() - start) / count


def _on_device(world: World, launch: Callable[[], None], count: int) -> Callable[[], float]:
    """Seconds of a call on a device that is held until all calls are launched, after a barrier of the devices."""
    watch = QueuedStopwatch(world.device, [_CALLS], world.control, aligning(world), _LAUNCH_S * count)

    def time() -> float:
        world.control.meet()
        return watch.time([(_CALLS, launch)])[0] / count

    return time


def _capture(world: World, repeated: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """Capture the calls; None and the reason on all ranks if one cannot.

    The mode is thread_local: the watchdog of torch's NCCL group queries events in a thread of its own, and a global capture
    fails by that (pytorch pull request 104555).
    """
    torch.cuda.synchronize(world.device)
    graph, reason = torch.cuda.CUDAGraph(), ""
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            repeated()
    except RuntimeError as error:
        reason = f"rank {world.rank} cannot capture the calls in a CUDA graph: {str(error).splitlines()[0]}"
    reasons = [text for text in world.control.all_gather_text(reason) if text]
    return (None, reasons[0]) if reasons else (graph, "")
