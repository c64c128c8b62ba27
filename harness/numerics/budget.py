"""The discrepancy budget: what share of a distance each step of a ladder makes, from one gradient to another.

total = sum of steps. The share of a step is <step, total> / |total|^2: shares add up to 1, and one is negative where the step
goes back. Beside it stands the step's own length over the total's: two large steps may cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.weights import Products


@dataclass(frozen=True)
class Step:
    """One rung to the next."""

    share: float
    """Of the total; NaN where that is 0."""
    length: float
    """|step| / |total|; NaN likewise."""
    l2: float
    """|step|."""


def products_of(rungs: Sequence[Tensor]) -> Products:
    """Of a piece of every rung, [elements] each and the first one first: the inner products of the steps between them."""
    rising = torch.stack([rung.double() for rung in rungs])
    return Products.of(rising[1:] - rising[:-1], rising[-1] - rising[0])


def budget(products: Products) -> list[Step]:
    """The steps, in order, from what products_of gives of all pieces together."""
    total = products.value_value
    lengths = products.gram.diagonal().clamp_min(0).sqrt().tolist()
    shares = [float(one) / total if total else torch.nan for one in products.with_value]
    return [
        Step(share, length / total**0.5 if total else torch.nan, length) for share, length in zip(shares, lengths, strict=True)
    ]
