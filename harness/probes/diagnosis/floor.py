"""The noise floor: how far rounding alone may put a gradient from its reference, by parameter and as a whole.

Two looks at it. Permuting a rank's batch changes nothing in exact arithmetic, so that what it does change is rounding. And the
bound of a sum's rounding error by its terms' magnitudes (harness.numerics.bounds) holds where a permutation shows nothing:
below float32, for a batch of one, and for a gradient that is 0 in exact arithmetic, which has no relative error at all.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.numerics.bounds import worst_case
from harness.probes.control import Control
from harness.probes.diagnosis.products import distance, dot

PERMUTATIONS = 5
"""At least five make a root mean square that is right within a factor of about 1.5."""


@dataclass(frozen=True)
class Local:
    """What one rank knows of its own rounding."""

    gradient: Tensor
    """Its own, sound, flat [elements]."""
    share: float
    """What it is multiplied by in the right result."""
    permuted: Iterator[Sequence[Tensor]]
    """The same of other orders of the samples, parameter by parameter."""
    contributions: Tensor
    """float64 [elements]: of the sum of the losses times random signs."""
    contributed: float
    """What a loss is multiplied by in the right result."""
    exact: Tensor
    """float64 [elements]: of the sum of the losses."""
    samples: int


@dataclass(frozen=True)
class Noise:
    """Of one parameter, or of the whole; in the unit of the gradient. On rank 0."""

    permutation: float
    probable: float
    worst: float
    kernels: float
    """How far the sound local gradients are from their own in float64: where numbers cancel inside of a sample, no permutation
    shows it."""

    @property
    def floor(self) -> float:
        """The larger of what permutations show and what is probable."""
        return max(self.permutation, self.probable)


def noise_of(control: Control, local: Local, sizes: Sequence[int], dtype: torch.dtype) -> list[Noise]:
    """The whole first, then each of the parameters, which have `sizes` elements. All ranks call; on rank 0 alone it counts.

    dtype: the coarsest in which a number of the step is rounded.
    """
    seen = torch.zeros(len(sizes), dtype=torch.float64)
    made = 0
    for other in local.permuted:
        seen += _squares_of_difference(other, local.gradient.split(list(sizes)))
        made += 1
        del other  # before the next one is made
    magnitudes = _squares(local.contributions, sizes) * max(local.samples, 1) * local.contributed**2
    scale = local.share**2
    kernels = _squares_of_difference(
        local.gradient.split(list(sizes)), local.exact.split(list(sizes)), local.share, local.contributed
    )
    own = torch.stack([seen * scale / max(made, 1), magnitudes, _squares(local.gradient, sizes) * scale, kernels])
    control.meet()
    ranks = control.gather(own)
    if control.rank:
        return []
    permutation, made_by_kernels = (torch.stack([one[row] for one in ranks]).sum(0) for row in (0, 3))
    total = torch.stack([one[1].sqrt() for one in ranks]).sum(0)
    # What stands beside a parameter in the model passes its rounding on, even where the parameter's own terms cancel out.
    beside = torch.stack([one[2].sum() for one in ranks]).sum() * torch.tensor(sizes) / sum(sizes)
    total = torch.maximum(total, beside.sqrt())
    height, unit = control.size.bit_length() + _height(local.samples), torch.finfo(dtype).eps / 2
    parts = [
        Noise(seen_here**0.5, math.sqrt(height) * unit * terms, worst_case(height, dtype) * terms, made_here**0.5)
        for seen_here, terms, made_here in zip(permutation.tolist(), total.tolist(), made_by_kernels.tolist(), strict=True)
    ]
    return [Noise(*(math.hypot(*column) for column in zip(*(vars(part).values() for part in parts), strict=True))), *parts]


def _height(samples: int) -> int:
    """Of a sum over the samples as kernels make it, and of the layers' own products before it."""
    return max(samples, 1).bit_length() + 1


def _squares(flat: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of each part of a vector."""
    return torch.tensor([dot(part, part) for part in flat.split(list(sizes))], dtype=torch.float64)


def _squares_of_difference(
    one: Sequence[Tensor], other: Sequence[Tensor], factor: float = 1.0, other_factor: float = 1.0
) -> Tensor:
    """|factor * one - other_factor * other|^2, parameter by parameter."""
    pairs = [(a.reshape(-1), b) for a, b in zip(one, other, strict=True)]
    return torch.tensor([distance(*pair, factor, other_factor) ** 2 for pair in pairs], dtype=torch.float64)
