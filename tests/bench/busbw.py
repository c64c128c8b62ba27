"""The sweep's busbw against a bare loop of barrier and all_reduce, in one world of two ranks, alternating; and calls in a row.

`python -m tests.bench.busbw 20` makes that many rounds of each size, at least 10.
"""

import sys
from collections.abc import Callable
from time import perf_counter

import torch
import torch.distributed as dist

from harness.probes.base import Machine
from harness.probes.collectives import CollectivesProbe
from harness.probes.transfer import ALL_REDUCE, Setting, Transfer
from harness.rank.inquiry import machine_of
from harness.rank.process_group import World, open_store
from harness.schema.record import Timing
from tests.bench.rounds import alternate, ratio
from tests.bench.world import median_of_slowest, print_of_world
from tests.options import CONFIG

CALLS = {2**20: 30, 2**22: 20, 2**24: 10, 2**26: 5}
"""Bytes to the calls a round; a round's time is their median, of the slowest rank."""
ROUNDS = 16
WARM_UP = 2
IN_A_ROW = 5


def main(rounds: int = ROUNDS) -> None:
    """Measure in a world."""
    print_of_world("tests.bench.busbw:measure", rounds)


def measure(rounds: int) -> None:
    """Measure on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    world = World.open(CONFIG, *open_store())
    machine = machine_of(world, CONFIG, [])
    everything = []
    for size, calls in CALLS.items():
        sweep, bare, other = _sweep(world, machine, size, calls), _bare(world, size, calls), _bare(world, size, calls)
        row, bare_row = _sweep_in_a_row(world, machine, size), _bare_in_a_row(world, size)
        for warm_up in (sweep, bare, other, row, bare_row):
            warm_up()
        found = alternate([sweep, bare, other, row, bare_row], rounds)
        everything += found
        if world.rank == 0:
            _tell(f"{size / 2**20:g} MiB", found, size)
    if world.rank == 0:
        _tell("all sizes", everything)
    world.close()


def _tell(sizes: str, found: list[tuple[float, ...]], size: int | None = None) -> None:
    """Ratios of bandwidths; on two ranks an all_reduce's busbw is its bytes over its time."""
    by_hand = sorted(bare for _, bare, *_ in found)[len(found) // 2]
    speed = f"   {size / by_hand / 1e9:.2f} GB/s" if size else ""
    print(f"busbw of all_reduce on 2 ranks, {sizes}, {len(found)} rounds: relative to a bare loop")
    print(f"  the sweep                    {ratio([(bare, ours) for ours, bare, *_ in found])}")
    print(f"  another bare loop (A/A)      {ratio([(bare, again) for _, bare, again, *_ in found])}{speed}")
    print(f"  calls in a row, over a bare loop without barriers  {ratio([(bare, ours) for *_, ours, bare in found])}")


def _sweep(world: World, machine: Machine, size: int, calls: int) -> Callable[[], float]:
    """The probe's own question, its check of the data included; its warm-ups are left out, as the report does."""
    probe = CollectivesProbe(
        collectives=["all_reduce"],
        in_place=[True],
        in_flight=[1],
        least_bytes=size,
        most_bytes=size,
        iterations=calls,
        warm_up=WARM_UP,
        back_to_back=0,
    )
    (question,) = probe.questions(machine)

    def run() -> float:
        timed = [seen for seen in question.ask() if isinstance(seen, Timing) and not seen.warm_up and seen.clock == "host"]
        return median_of_slowest(world, [seen.seconds for seen in timed])

    return run


def _sweep_in_a_row(world: World, machine: Machine, size: int) -> Callable[[], float]:
    """The probe's own way of timing IN_A_ROW calls."""
    transfer = Transfer(Setting(ALL_REDUCE, "float32", True, 1, size), world.rank, world.size, world.measured, world.device)
    transfer.settle()

    def run() -> float:
        (way,) = machine.in_a_row(transfer.call, IN_A_ROW)
        assert way.time is not None
        return median_of_slowest(world, [way.time()])

    return run


def _bare_in_a_row(world: World, size: int) -> Callable[[], float]:
    tensor = torch.zeros(size // 4)

    def run() -> float:
        dist.barrier()
        start = perf_counter()
        for _ in range(IN_A_ROW):
            dist.all_reduce(tensor, group=world.measured)
        return median_of_slowest(world, [(perf_counter() - start) / IN_A_ROW])

    return run


def _bare(world: World, size: int, calls: int) -> Callable[[], float]:
    """What a user would write; it begins as cold as the sweep, which has its buffers made and filled for each round."""

    def run() -> float:
        tensor = torch.zeros(size // 4)
        seconds = []
        for _ in range(WARM_UP + calls):
            dist.barrier()
            start = perf_counter()
            dist.all_reduce(tensor, group=world.measured)
            seconds.append(perf_counter() - start)
        return median_of_slowest(world, seconds[WARM_UP:])

    return run


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
