"""Times of calls that take turns."""

from collections.abc import Callable, Iterator, Mapping
from time import perf_counter

import torch

from harness.schema.record import Observation


def seconds(calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Iterator[Observation]:
    """One observation a call and round; each call once beforehand, untimed. Waits for the device before each clock read."""
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            yield Observation(name, "seconds", _time(call, device))


def _time(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = perf_counter()
    call()
    _wait(device)
    return perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
