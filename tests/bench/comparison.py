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
    if fused.available():
        compare()  # compiles
        _tell("compiled", alternate([dot, compare, dot], ROUNDS))
    discrepancy.COMPILE_FROM = 1 << 62
    _tell("without a compiler", alternate([dot, compare, dot], 10))


def _tell(name: str, rounds: list[tuple[float, ...]]) -> None:
    median = statistics.median(seconds for _, seconds, _ in rounds)
    print(f"  {name:<27}  {ratio([(first, seconds) for first, seconds, _ in rounds])}   median {median * 1e3:.0f} ms")
    print(f"  beside it, dot again (A/A)   {ratio([(first, again) for first, _, again in rounds])}")


if __name__ == "__main__":
    main()
