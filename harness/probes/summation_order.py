"""The order in which an all_reduce of the measured group adds the ranks up, by dtype and size."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from harness.numerics.trees import describe, height
from harness.probes.base import ONE_RANK, Machine, Probe, Question
from harness.probes.order import Chunk, replayed, reveal, unsupported
from harness.schema.parameters import Count, Distinct, InBytes, NotEmpty, Range
from harness.schema.record import Observation
from harness.schema.seeding import derive_seed
from harness.tensors import collectives

Message = Annotated[int, InBytes(), Range(8, 2**50)]
"""Size of a message: at least one float64."""
Dtype = Literal["float32", "float64", "float16", "bfloat16"]
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


class SummationOrderProbe(Probe):
    """For each dtype and each of `bytes`, the size of the message: every tree by which some of its elements are summed.

    Takes W (W - 1) all_reduces of each message, and is not asked of more than `most_ranks` ranks.
    """

    def __init__(
        self,
        bytes: Annotated[Sequence[Message], NotEmpty(), Distinct()] = (64, 4096, 2**22),  # noqa: A002
        dtypes: Annotated[Sequence[Dtype], NotEmpty(), Distinct()] = ("float32", "bfloat16"),
        most_ranks: Count = 32,
    ) -> None:
        self._bytes, self._dtypes, self._most_ranks = list(bytes), [_DTYPES[dtype] for dtype in dtypes], most_ranks

    def questions(self, machine: Machine) -> list[Question]:
        return [
            Question(
                f"all_reduce, {str(dtype).removeprefix('torch.')}, {size:,} bytes",
                partial(_ask, machine, dtype, size // dtype.itemsize),
                self._unsupported(machine, dtype),
            )
            for dtype in self._dtypes
            for size in self._bytes
        ]

    def _unsupported(self, machine: Machine, dtype: torch.dtype) -> str | None:
        if machine.size == 1:
            return ONE_RANK
        if machine.size > self._most_ranks:
            return f"{machine.size} ranks take {machine.size * (machine.size - 1)} all_reduces; most_ranks={self._most_ranks}"
        return unsupported(dtype, machine.size)


def _ask(machine: Machine, dtype: torch.dtype, elements: int) -> Iterator[Observation]:
    """A setting for each order; elements that masks show to be summed otherwise have one that says how."""
    (chunks,) = reveal(partial(_total, machine), [torch.empty(elements, dtype=dtype, device=machine.device)], *_place(machine))
    everyone = [_drawn(machine, rank, elements, dtype) for rank in range(machine.size)]
    summed = everyone[machine.rank].clone()
    _total(machine, [summed])
    for order in dict.fromkeys(map(_order, chunks)):
        mine = [chunk for chunk in chunks if _order(chunk) == order]
        yield Observation(order, "elements", sum(chunk.stop - chunk.start for chunk in mine))
        yield Observation(order, "additions in a row", height(mine[0].tree) if mine[0].tree is not None else float("nan"))
        yield Observation(order, "replayed with other bits", sum(_unlike(chunk, everyone, summed) for chunk in mine))


def _place(machine: Machine) -> tuple[int, int]:
    return machine.rank, machine.size


def _total(machine: Machine, tensors: list[Tensor]) -> None:
    for tensor in tensors:
        collectives.all_reduce(tensor, group=machine.group)


def _drawn(machine: Machine, rank: int, elements: int, dtype: torch.dtype) -> Tensor:
    """What a rank brings: of both signs, and of many magnitudes. Every rank knows everyone's."""
    generator = torch.Generator().manual_seed(derive_seed(machine.seed, "summation_order", str(rank)))
    drawn = torch.randn(2, elements, generator=generator)
    return (drawn[0] * drawn[1].exp()).to(dtype).to(machine.device)


def _order(chunk: Chunk) -> str:
    return chunk.shows if chunk.tree is None else describe(chunk.tree)


def _unlike(chunk: Chunk, everyone: list[Tensor], summed: Tensor) -> float:
    """Elements whose bits a replay does not give; NaN where there is nothing to replay."""
    if not chunk.replays:
        return float("nan")
    again = replayed(chunk, lambda rank, start, stop: everyone[rank][start:stop])
    return float((again != summed[chunk.start : chunk.stop]).sum())
