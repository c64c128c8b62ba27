"""Crafted data: whole numbers by place and rank, so small that every dtype holds them and their sum over ranks exactly."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LARGEST = 127
"""Of any value and any sum: int8's, and less than the 256 up to which bfloat16 has every whole number."""
NEVER = -1
"""No value; 255 in uint8, which is none either."""
_CHUNK = {"cpu": 2**15, "cuda": 2**24}
"""Elements at a time, by device: a large message is filled and checked in a small part of its memory, and of a cache."""

Values = Callable[[Tensor], Tensor]
"""Places, int64, to the values that stand there, int64."""


class WrongResultError(Exception):
    """A collective left something else than what its inputs make."""


def contribution(rank: int, size: int, seed: int) -> Values:
    """What `rank` of `size` brings to a sum.

    On more than LARGEST ranks, only as many of them bring something to one place as leave its sum at most LARGEST.
    """
    turns = -(-size // LARGEST)
    bits = (LARGEST // -(-size // turns) + 1).bit_length() - 1

    def values(places: Tensor) -> Tensor:
        drawn: Tensor = _mixed(places, rank + 1, seed) & (2**bits - 1)
        return drawn if turns == 1 else torch.where((places + rank) % turns == 0, drawn, 0)

    return values


def total(size: int, seed: int) -> Values:
    """The sum of what all ranks bring."""

    def values(places: Tensor) -> Tensor:
        summed = torch.zeros_like(places)
        for rank in range(size):
            summed += contribution(rank, size, seed)(places)
        return summed

    return values


def sequence(seed: int) -> Values:
    """What is only moved, and never summed."""
    return lambda places: _mixed(places, 0, seed) & LARGEST


def fill(tensor: Tensor, values: Values, start: int = 0) -> None:
    """Write the values of the places from `start` on into a flat tensor."""
    for part, places in _chunks(tensor, start):
        part.copy_(values(places))


def check(tensor: Tensor, values: Values, start: int = 0) -> None:
    """Raises WrongResultError where an element of the flat tensor is not exactly the value of its place, from `start` on."""
    wrong, first = 0, ""
    for part, places in _chunks(tensor, start):
        expected = values(places).to(tensor.dtype)
        differ = (part != expected).nonzero()
        if len(differ) and not first:
            at = int(differ[0])
            first = f"{part[at].item():g} instead of {expected[at].item():g} at {int(places[at]) - start}"
        wrong += len(differ)
    if wrong:
        raise WrongResultError(f"{wrong} of {tensor.numel()} elements are wrong, the first one {first}")


def _chunks(tensor: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    length = _CHUNK[tensor.device.type]
    for begin in range(0, tensor.numel(), length):
        part = tensor[begin : begin + length]
        yield part, torch.arange(start + begin, start + begin + len(part), device=tensor.device)


def _mixed(places: Tensor, rank: int, seed: int) -> Tensor:
    """Bits of place, rank and seed, so mixed that no shift of places gives the same again (two rounds of multiply and xor)."""
    mixed = places * 0x9E3779B1 + (rank * 0x85EBCA77 + seed * 0xC2B2AE3D) & _WORD
    mixed = (mixed ^ (mixed >> 15)) * 0x2C1B3C6D & _WORD
    return (mixed ^ (mixed >> 12)) >> 4


_WORD = 0xFFFFFFFF
