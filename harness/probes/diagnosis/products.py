"""Inner products of gradients that lie on different ranks: summed up piece by piece, so that none is whole in one place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.weights import Products
from harness.probes.control import Control

RESOLVED = 1e-6
"""Of |d|: what a residual from inner products may be off by."""
PIECE_BYTES = 1 << 20
"""What a rank hands over at a time."""
_PIECE = PIECE_BYTES // 8
"""float64 elements of it."""


@dataclass(frozen=True)
class Gram:
    """Of vectors that ranks hold, in order of rank."""

    held: list[int]
    """How many each rank holds; equal on all ranks."""
    products: Tensor
    """float64 [K, K] on rank 0; [0, 0] elsewhere."""


def gram_of(control: Control, vectors: Sequence[Tensor]) -> Gram:
    """All ranks call, each with its own flat vectors, which may be none; all have equal lengths."""
    control.meet()
    held = [int(count) for count in control.all_gather(torch.tensor(len(vectors)))]
    products, most = torch.zeros(0, 0, dtype=torch.float64), max(max(held), 1)
    if control.rank == 0:
        products = torch.zeros(sum(held), sum(held), dtype=torch.float64)
    control.meet()
    length = max(int(length) for length in control.all_gather(torch.tensor(len(vectors[0]) if vectors else 0)))
    for start in range(0, length, step := max(1, PIECE_BYTES // (8 * most))):
        pieces = torch.zeros(most, min(step, length - start), dtype=torch.float64)
        for place, vector in enumerate(vectors):
            pieces[place] = vector[start : start + step]
        control.meet()
        gathered = control.gather(pieces)
        if control.rank == 0:
            x = torch.cat([theirs[:count] for theirs, count in zip(gathered, held, strict=True)])
            products += x @ x.T
    return Gram(held, products)


def with_vector(control: Control, gram: Gram, vectors: Sequence[Tensor], rest: Tensor) -> Tensor:
    """<x_i, rest> of every vector: float64 [K] on rank 0, [0] elsewhere. `rest` is equal on all ranks."""
    own = torch.zeros(max(max(gram.held), 1), dtype=torch.float64)
    for place, vector in enumerate(vectors):
        own[place] = dot(vector, rest)
    control.meet()
    gathered = control.gather(own)
    if control.rank:
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([theirs[:count] for theirs, count in zip(gathered, gram.held, strict=True)])


def dot(one: Tensor, other: Tensor) -> float:
    """In float64, a piece at a time."""
    pairs = zip(one.split(_PIECE), other.split(_PIECE), strict=True)
    return sum((float(a.double() @ b.double()) for a, b in pairs), 0.0)


def distance(one: Tensor, other: Tensor) -> float:
    """|one - other|, in float64, a piece at a time."""
    pairs = zip(one.split(_PIECE), other.split(_PIECE), strict=True)
    return math.sqrt(sum((float((a.double() - b.double()).square().sum()) for a, b in pairs), 0.0))


def minus(value: Tensor, other: Tensor, factor: float = 1.0) -> Tensor:
    """value - factor * other: a new tensor, in float64."""
    return value.to(torch.float64, copy=True).sub_(other, alpha=factor)


def projected(value: Tensor, direction: Tensor) -> tuple[float, float]:
    """The factor by which `direction` comes nearest to `value`, and how far off that is."""
    along = dot(direction, direction)
    factor = dot(value, direction) / along if along else 0.0
    squared = 0.0
    for one, other in zip(value.split(_PIECE), direction.split(_PIECE), strict=True):
        squared += float((one.double() - factor * other.double()).square().sum())
    return factor, squared**0.5


def summed_over_ranks(control: Control, own: Tensor, weight: float) -> Tensor:
    """The sum of weight * own, in order of rank, on all ranks."""
    total = torch.empty(len(own), dtype=torch.float64)
    for piece, out in zip(own.split(_PIECE), total.split(_PIECE), strict=True):
        control.meet()
        gathered = control.gather(piece.double() * weight)
        if control.rank == 0:
            out.zero_()
            for theirs in gathered:
                out += theirs
        control.meet()
        control.broadcast(out)
    return total


def squares_of_sum(control: Control, own: Tensor, weight: float, right: Tensor | None, sizes: Sequence[int]) -> Tensor:
    """|sum over ranks of weight * own - right|^2 of each parameter: float64 [parameters] on rank 0, zeros elsewhere.

    own, right: flat [elements]; right on rank 0. sizes: elements of each parameter. No rank holds the sum.
    """
    squares = torch.zeros(len(sizes), dtype=torch.float64)
    ends = torch.tensor(sizes).cumsum(0)
    for start in range(0, len(own), _PIECE):
        control.meet()
        gathered = control.gather(own[start : start + _PIECE].double() * weight)
        if right is not None:
            apart = sum(gathered[1:], gathered[0]) - right[start : start + _PIECE]
            parameters = torch.bucketize(torch.arange(start, start + len(apart)), ends, right=True)
            squares.index_add_(0, parameters, apart.square())
    return squares


def everywhere(control: Control, vector: Tensor | None, whole: Tensor) -> Tensor:
    """Rank 0's flat vector on all ranks, in `whole`."""
    if vector is not None:
        whole.copy_(vector)
    for piece in whole.split(_PIECE):
        control.meet()
        control.broadcast(piece)
    return whole


@dataclass(frozen=True)
class Rest:
    """On rank 0: what is known of the rest d = value - expected in terms of some vectors x."""

    gram: Tensor
    """[K, K]"""
    with_rest: Tensor
    """[K]: <x, d>."""
    squared: float
    """<d, d>."""

    def left(self, change: Tensor) -> float:
        """|d - sum_i change_i x_i|, down to about 1e-8 of |d|."""
        squared = self.squared - 2 * float(change @ self.with_rest) + float(change @ self.gram @ change)
        return math.sqrt(max(squared, 0.0))

    def length(self, change: Tensor) -> float:
        """|sum_i change_i x_i|."""
        return math.sqrt(max(float(change @ self.gram @ change), 0.0))

    def best(self, direction: Tensor, offset: Tensor) -> tuple[float, float]:
        """The factor c for which d - offset x - c direction x is shortest, and how long that is."""
        along = float(direction @ self.gram @ direction)
        factor = float(direction @ (self.with_rest - self.gram @ offset)) / along if along else 0.0
        return factor, self.left(offset + factor * direction)

    @property
    def products(self) -> Products:
        """For least squares."""
        return Products(self.gram, self.with_rest, self.squared)
