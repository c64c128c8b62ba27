"""Several calls in a row between two clock reads, as nccl-tests times them: on the host, on the device, and by a CUDA graph."""

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any

import torch

from harness.probes.base import Way
from harness.rank.process_group import World
from harness.rank.queued import NOT_AHEAD, QueuedStopwatch, aligning
from harness.schema.record import CUDA_BACK_TO_BACK, CUDA_GRAPH, HOST_BACK_TO_BACK

_CALLS = "calls"
_GLOO = "gloo's collectives of CUDA tensors make the host wait for the device"
_LAUNCH_S = 1e-4
"""Likely time to launch a call, before one was seen."""
_failed: list[str] = []
"""Reason of the first capture that failed in this process. No other is tried: torch may keep more of it than is undone here."""


def ways(world: World, call: Callable[[], None], count: int) -> Generator[Way, None, None]:
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
    try:
        yield Way(CUDA_GRAPH, _on_device(world, graph.replay, count), NOT_AHEAD)
        torch.cuda.synchronize(world.device)
    finally:
        graph.reset()  # NCCL waits for graphs that hold its kernels when a group is destroyed or aborted


def _repeat(call: Callable[[], None], count: int) -> None:
    for _ in range(count):
        call()


def _on_host(world: World, repeated: Callable[[], None], count: int) -> float:
    world.control.meet()
    start = perf_counter()
    repeated()
    return (perf_counter() - start) / count


def _on_device(world: World, launch: Callable[[], None], count: int) -> Callable[[], float]:
    """Seconds of a call on a device that waits until all calls are launched, after a barrier of the devices."""
    watch = QueuedStopwatch(world.device, [_CALLS], world.control, aligning(world), _LAUNCH_S * count)

    def time() -> float:
        world.control.meet()
        return watch.time([(_CALLS, launch)])[0] / count

    return time


def _capture(world: World, repeated: Callable[[], None]) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """Capture the calls; None and the reason on all ranks if one cannot, or could not before."""
    graph = None
    if not _failed:
        graph = _captured(world, repeated)
    if not world.control.any(graph is None):
        return graph, ""
    reasons = [text for text in world.control.all_gather_text(_failed[0] if _failed else "") if text]
    _failed[:] = _failed or reasons[:1]
    if graph is not None:
        graph.reset()
    return None, reasons[0]


def _captured(world: World, repeated: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
    """Capture on this rank; on failure None, and the reason in `_failed`.

    The mode is thread_local: the watchdog of torch's NCCL group queries events in a thread of its own, and a global capture
    fails by that (pytorch pull request 104555).
    """
    graph, stream, pool = torch.cuda.CUDAGraph(), torch.cuda.current_stream(world.device), torch.cuda.graph_pool_handle()
    try:
        torch.cuda.synchronize(world.device)
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            repeated()
    except Exception as error:  # whatever a call raises: the other ranks wait to agree
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        _failed.append(f"rank {world.rank} cannot capture the calls in a CUDA graph: {first}")
        _leave_capture(world.device, graph, stream, pool)
        return None
    return graph


def _leave_capture(device: torch.device, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any) -> None:
    """Undo what a capture leaves behind whose end raises: the current stream, the allocator's pool, the generator's mode."""
    torch.cuda.set_stream(stream)
    graph.reset()
    index = stream.device.index
    with suppress(RuntimeError):  # raises where the capture has ended as it should
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    with suppress(RuntimeError):  # else "Offset increment outside graph capture" (torch 2.8) from the next random number on
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())
