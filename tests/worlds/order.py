"""The order in which strategies sum, revealed, and random gradients summed again in it."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.axes.aggregation.bucketed import BucketedAggregation
from harness.axes.aggregation.ddp import DdpAggregation
from harness.probes.order import Chunk, replayed, reveal
from harness.rank.process_group import World
from tests.options import make
from tests.worlds.serve import noted

DTYPES = ("float32", "float64", "bfloat16", "float16")
SIZES = (1, 2, 3, 7, 100, 1 << 12, (1 << 16) + 1, 1 << 20)
LARGEST = (5, 1 << 20)
"""Elements of the largest of a few gradients."""


class Collective(Exchange):
    """One all_reduce a tensor."""

    def __init__(self, world: World) -> None:
        super().__init__(nn.Identity())
        self._world = world

    def finish(self, gradients: list[Tensor]) -> None:
        for gradient in gradients:
            dist.all_reduce(gradient, group=self._world.measured)


class Linear(nn.Module):
    """Whose gradient with respect to its parameters is what it is called with."""

    def __init__(self, like: list[Tensor]) -> None:
        super().__init__()
        self.held = nn.ParameterList([nn.Parameter(torch.zeros_like(one)) for one in like])

    def forward(self, *gradients: Tensor) -> Tensor:
        return torch.stack([(own * one).sum() for own, one in zip(self.held, gradients, strict=True)]).sum()


def drawn(rank: int, sizes: list[int], dtype: torch.dtype) -> list[Tensor]:
    """What a rank brings: of both signs, and of many magnitudes."""
    generator = torch.Generator().manual_seed(rank)
    both = [torch.randn(2, size, generator=generator, dtype=torch.float64) for size in sizes]
    return [(one[0] * torch.exp(one[1])).to(dtype) for one in both]


def aggregated(exchange: Exchange, gradients: list[Tensor]) -> list[Tensor]:
    """Iterations with these local gradients, until a strategy does what it is named for."""
    if isinstance(exchange, Collective):
        summed = [gradient.clone() for gradient in gradients]
        exchange.finish(summed)
        return summed
    for _ in range(5):  # DDP's reducer tells of its buckets one iteration late
        exchange.model.zero_grad()
        exchange.model(*gradients).backward()
        exchange.backward_ended()
        summed = [parameter.grad for parameter in exchange.model.parameters() if parameter.grad is not None]
        exchange.finish(summed)
    return summed


def tried(exchange: Exchange, world: World, sizes: list[int], dtype: torch.dtype) -> list[object]:
    """Sum, reveal, and, on rank 0, replay and compare."""
    own = drawn(world.rank, sizes, dtype)
    result = exchange.received(aggregated(exchange, own))
    chunks = reveal(exchange.total, exchange.sent(own), world.rank, world.size)
    if world.rank:
        return []
    sent = [exchange.sent(drawn(rank, sizes, dtype)) for rank in range(world.size)]
    apart = [_apart(own, [theirs[place] for theirs in sent], result[place]) for place, own in enumerate(chunks)]
    every = [chunk for own in chunks for chunk in own]
    counts = [sum(column) for column in zip(*apart, strict=True)]
    return ["; ".join(sorted({chunk.shows for chunk in every})), len({chunk.tree for chunk in every}), *counts]


def _apart(chunks: list[Chunk], everyone: list[Tensor], result: Tensor) -> tuple[int, int]:
    flat, total = [tensor.flatten() for tensor in everyone], result.flatten()
    left_out = sum(chunk.stop - chunk.start for chunk in chunks if not chunk.replays)
    again = {chunk: replayed(chunk, lambda rank, start, stop: flat[rank][start:stop]) for chunk in chunks if chunk.replays}
    unlike = [int((bits(part) != bits(total[chunk.start : chunk.stop])).sum()) for chunk, part in again.items()]
    return left_out, sum(unlike)


def bits(tensor: Tensor) -> Tensor:
    """Integers of equal bits."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def strategies(asked: Sequence[str]) -> dict[str, Aggregation]:
    """Those that sum; the ones with buckets also with small ones."""
    small = {"bucketed": BucketedAggregation(bytes=1024), "ddp": DdpAggregation(bucket_cap_mb=2**-10)}
    shipped = {name: one for name, one in make("aggregation").items() if one.sums and one.spans_ranks}
    chosen = {name: one for name, one in shipped.items() if not asked or name in asked}
    return {**chosen, **{f"{name}, 1 KiB": one for name, one in small.items()}}


def replays(world: World, dtype_name: str, asked: Sequence[str] = ()) -> dict[str, dict[str, list[object]]]:
    """Reveal and replay every strategy that sums, or those asked for; `collective` is one all_reduce of one tensor.

    Return {aggregation: {largest gradient's elements: [what chunks show, how many trees there are, elements that a replay
    leaves out, elements in which its bits are other ones]}}.
    """
    dtype = getattr(torch, dtype_name)
    collective = Collective(world)
    rows = {"collective": {str(size): tried(collective, world, [size], dtype) for size in SIZES}}
    fabric = Fabric(world.measured, world.ranks_per_node, world.subgroups)
    for name, aggregation in strategies(asked).items():
        rows[name] = {}
        for largest in LARGEST:
            sizes = [3, 1000, largest, 7, 1]
            exchange = aggregation.begin(Linear(drawn(0, sizes, dtype)), fabric)
            with noted(f"{name} {largest}"):
                rows[name][str(largest)] = tried(exchange, world, sizes, dtype)
    return rows
