"""Hold the device: keep its current stream busy, so that the host launches work before the device begins it."""

import functools

import torch

_LOADING, _CYCLES = 10_000, 10_000_000
"""Cycles of the first call, which loads the kernel, and of those that are timed: 5 ms at 2 GHz."""
_EQUAL = 0.02
"""Relative difference of two rates in turn at which the device's clock has settled."""
_MOST_CALLS = 20


def hold(seconds: float) -> None:
    """Keep the current stream busy for about so many seconds. The host does not wait."""
    torch.cuda._sleep(max(1, int(seconds * cycles_per_s())))


@functools.cache
def cycles_per_s() -> float:
    """Cycles of torch.cuda._sleep in a second, on the current device while it is busy.

    An idle device may run at a lower clock, so calls are timed until two in turn take equally long, at most 20 of them.
    """
    _rate(_LOADING)
    rate = _rate(_CYCLES)
    for _ in range(_MOST_CALLS - 1):
        before, rate = rate, _rate(_CYCLES)
        if abs(rate - before) <= _EQUAL * rate:
            break
    return rate


def _rate(cycles: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    return float(cycles / (start.elapsed_time(end) / 1e3))
