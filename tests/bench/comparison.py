"""The one-pass comparison against torch.dot over the same two tensors of 256 MB, one thread."""

import statistics
from time import perf_counter

import torch

from harness.numerics import discrepancy, fused
from tests.bench.rounds import alternate, ratio

ELEMENTS = 64 * 10**6
ROUNDS = 15


def main() -> None:
    torch.set_num_threads(1)
    value = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(0))
    against = value + 1e-7 * torch.flip(value, (0,))

    def dot() -> float:
        start = perf_counter()
        torch.dot(value, against)
        return perf_counter() - start

    def compare() -> float:
        start = perf_counter()
        discrepancy.compare(value, against)
        return perf_counter() - start

    print(f"comparing two float32 tensors of {value.nbytes / 1e6:.0f} MB: speed relative to torch.dot, {ROUNDS} rounds")
    print(f"  torch.dot over itself (A/A)  {ratio(alternate(dot, dot, ROUNDS))}")
    if fused.available():
        compare()  # compiles
        pairs = alternate(dot, compare, ROUNDS)
        print(f"  compiled                     {ratio(pairs)}   median {statistics.median(b for _, b in pairs) * 1e3:.0f} ms")
    discrepancy.COMPILE_FROM = 1 << 62
    pairs = alternate(dot, compare, 10)
    print(f"  without a compiler           {ratio(pairs)}   median {statistics.median(b for _, b in pairs) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
