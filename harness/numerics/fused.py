"""The comparison as one compiled loop over both gradients, for gradients too large for a dozen passes.

numba, and not torch.compile: on float32 with float64 sums it needs a fifth of the time of inductor's loop (whose conversion
from float to double is not vectorized), compiles in one second instead of ten, and needs no C++ compiler on the node.
"""

import functools
import importlib.util
import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
_STRIP = 1 << 22
"""Elements summed at a time, so that small terms are not lost in a long sum; a rounded `against` of it takes 16 MiB."""

Sums = tuple[float, float, float, float, float, int]
"""max |d|, <d,d>, <d,against>, <against,against>, max ulp, mismatched"""


@functools.cache
def available() -> bool:
    """Whether the compiler is installed (the extra `compiled`)."""
    return importlib.util.find_spec("numba") is not None


def serves(value: Tensor, against: Tensor) -> bool:
    """Contiguous float32 or float64 on the CPU."""
    fits = all(x.dtype in _BITS and x.device.type == "cpu" and x.is_contiguous() for x in (value, against))
    return fits and available()


def sums(value: Tensor, against: Tensor) -> Sums:
    """The sums of harness.numerics.discrepancy.Discrepancy over two flat tensors that `serves` accepts."""
    strips = zip(value.split(_STRIP), against.split(_STRIP), strict=True)
    return functools.reduce(_add, (_sums_of_strip(*strip) for strip in strips))


def _sums_of_strip(value: Tensor, against: Tensor) -> Sums:
    bits = _BITS[value.dtype]
    rounded = against.to(value.dtype)
    arrays = (value, against, value.view(bits), rounded.view(bits))
    largest, dd, d_against, against_against, max_ulp, mismatched = _kernel(value.dtype)(*(x.numpy() for x in arrays))
    return float(largest), float(dd), float(d_against), float(against_against), float(max_ulp), int(mismatched)


def _add(x: Sums, y: Sums) -> Sums:
    largest = float("nan") if x[0] != x[0] or y[0] != y[0] else max(x[0], y[0])
    return (largest, x[1] + y[1], x[2] + y[2], x[3] + y[3], max(x[4], y[4]), x[5] + y[5])


@functools.cache
def _kernel(dtype: torch.dtype) -> Callable[..., tuple[Any, ...]]:
    """The loop for values of `dtype`; integers keep its width, so that a vector holds as many of them as of the floats."""
    import numba
    import numpy as np

    config: Any = numba.config
    config.CPU_FEATURES = _whole_vectors(config.CPU_FEATURES)
    signed, unsigned = (np.int32, np.uint32) if dtype == torch.float32 else (np.int64, np.uint64)
    least = signed(np.iinfo(signed).min)

    # NaN and Inf keep their meaning: of "fast" math only the order of a sum is given up.
    @numba.njit(fastmath={"reassoc", "contract"}, error_model="numpy", nogil=True)  # type: ignore[untyped-decorator, unused-ignore]
    def kernel(value: Any, against: Any, value_bits: Any, against_bits: Any) -> tuple[Any, ...]:
        dd = d_against = against_against = 0.0
        max_bits = np.int64(0)
        max_ulp = mismatched = unsigned(0)
        for i in range(value.size):
            y = np.float64(against[i])
            d = np.float64(value[i]) - y
            dd += d * d
            d_against += d * y
            against_against += y * y
            # As integers, so that the loop is vectorized; a difference that is NaN is then the largest, as it should be.
            max_bits = max(max_bits, np.float64(abs(d)).view(np.int64))
            p, q = value_bits[i], against_bits[i]
            mismatched = unsigned(mismatched + unsigned(p != q))
            p = p if p >= 0 else signed(least - p)
            q = q if q >= 0 else signed(least - q)
            max_ulp = max(max_ulp, unsigned(unsigned(max(p, q)) - unsigned(min(p, q))))
        return np.int64(max_bits).view(np.float64), dd, d_against, against_against, max_ulp, mismatched

    return kernel


def _whole_vectors(features: str | None) -> str | None:
    """LLVM uses half of a 512-bit vector unit unless it is told not to: a fifth of this loop's time."""
    if features is not None or platform.machine() != "x86_64":
        return features
    import llvmlite.binding as llvm

    return f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"
