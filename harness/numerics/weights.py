"""Effective weights: with what weight each of some known vectors stands in another one, by least squares over inner products.

g = sum_i w_i x_i + rest, where <x_i, x_j> (the Gram matrix) and <x_i, g> are all that is needed: vectors of any length, on any
number of ranks, are summed up into them piece by piece. Inner products know singular values down to the square root of what
rounding leaves of them, about 1e-8 of the largest: what lies below is not identifiable, and gets no number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_EPSILON = 2.0**-52
_CLEAR = 1e-6
"""How much of a weight may lie outside the identifiable subspace: what rounding puts there."""


@dataclass(frozen=True)
class Products:
    """Inner products in float64; those of two pieces add up with `+`."""

    gram: Tensor
    """[K, K]: <x_i, x_j>."""
    with_value: Tensor
    """[K]: <x_i, g>."""
    value_value: float = 0.0
    """<g, g>."""

    @classmethod
    def none(cls, count: int) -> "Products":
        """Of K vectors without an element."""
        return cls(torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64))

    @classmethod
    def of(cls, vectors: Tensor, value: Tensor) -> "Products":
        """Of a piece: [K, elements] and [elements], of any floating dtype."""
        x, g = vectors.double(), value.double()
        return cls((x @ x.T).cpu(), (x @ g).cpu(), float(g @ g))

    def __add__(self, other: "Products") -> "Products":
        return Products(self.gram + other.gram, self.with_value + other.with_value, self.value_value + other.value_value)


@dataclass(frozen=True)
class Weights:
    """The least-squares solution, as far as the inner products tell it."""

    values: list[float]
    """By vector; NaN where it is not identifiable. Duplicates have the sum of their weights, each."""
    errors: list[float]
    """By how much each may be off where g is off by `noise` of its length; NaN likewise."""
    groups: list[list[int]]
    """Vectors that are one and the same."""
    rank: int
    """Independent directions among the groups; zero vectors have none."""
    condition: float
    """Largest over smallest of their singular values, after each vector is scaled to length 1."""
    residual: float
    """|g - sum_i w_i x_i| / |g|: what no weighting explains; 0 where g is 0."""
    group_of: dict[int, int] = field(default_factory=dict)

    def identifiable(self, vector: int) -> bool:
        """Whether a weight is known."""
        return self.values[vector] == self.values[vector]


def effective_weights(products: Products, noise: float = 0.0) -> Weights:
    """Solve for the weights. noise: the relative length of what rounding may have added to g, as of its dtype.

    Vectors that are equal are merged: only the sum of their weights can be known. Of the others, directions whose singular
    value lies below what rounding leaves of the Gram matrix are left out, and with them every weight that has a part there.
    """
    groups = _duplicates(products.gram)
    chosen = torch.tensor([group[0] for group in groups])
    gram, with_value = products.gram[chosen][:, chosen], products.with_value[chosen]
    lengths = gram.diagonal().clamp_min(0).sqrt()
    present = lengths > 0
    scale = torch.where(present, 1 / torch.where(present, lengths, 1.0), 0.0)
    eigenvalues, vectors = torch.linalg.eigh(gram * scale[:, None] * scale[None, :])
    kept = eigenvalues > _floor(eigenvalues, len(groups))
    basis, inverse = vectors[:, kept], 1 / eigenvalues[kept]
    solved = scale * (basis @ (inverse * (basis.T @ (scale * with_value))))
    errors = scale * (basis.square() @ inverse).sqrt() * noise * products.value_value**0.5
    outside = 1 - basis.square().sum(1)
    known = present & (outside < _CLEAR)
    return Weights(
        values=_spread(torch.where(known, solved, torch.nan), groups),
        errors=_spread(torch.where(known, errors, torch.nan), groups),
        groups=groups,
        rank=int(kept.sum()),
        condition=float((eigenvalues[-1] / eigenvalues[kept][0]).sqrt()) if kept.any() else 1.0,
        residual=_residual(products, gram, with_value, solved),
        group_of={member: place for place, group in enumerate(groups) for member in group},
    )


def _floor(eigenvalues: Tensor, count: int) -> float:
    return 16 * count * _EPSILON * float(eigenvalues[-1])


def _duplicates(gram: Tensor) -> list[list[int]]:
    """|x_i - x_j|^2 = G_ii + G_jj - 2 G_ij, 0 but for rounding."""
    groups: list[list[int]] = []
    for place in range(len(gram)):
        for group in groups:
            other = group[0]
            both = gram[place, place] + gram[other, other]
            if both > 0 and both - 2 * gram[place, other] <= 64 * _EPSILON * both:
                group.append(place)
                break
        else:
            groups.append([place])
    return groups


def _residual(products: Products, gram: Tensor, with_value: Tensor, solved: Tensor) -> float:
    """|g - Xw|^2 = <g,g> - 2 w.b + w.Gw: it knows nothing below about 1e-8 of |g|."""
    if products.value_value == 0:
        return 0.0
    squared = products.value_value - 2 * float(solved @ with_value) + float(solved @ gram @ solved)
    return math.sqrt(max(squared, 0.0) / products.value_value)


def _spread(values: Tensor, groups: Sequence[Sequence[int]]) -> list[float]:
    """By vector again."""
    found = [0.0] * sum(map(len, groups))
    for value, group in zip(values.tolist(), groups, strict=True):
        for member in group:
            found[member] = value
    return found
