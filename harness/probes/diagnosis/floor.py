"""The noise floor: how far rounding alone may put a gradient from its reference, by parameter and as a whole.

From float32 on, two estimates. Permuting a rank's batch changes nothing in exact arithmetic, so the change that it makes is
rounding. The bound of a sum's rounding error by its terms' magnitudes (harness.numerics.bounds) holds where a permutation shows
nothing: for a batch of one, and for a gradient that is 0 in exact arithmetic, which has no relative error at all.

Below float32 that bound is 20 times too large, because kernels accumulate in float32. There the floor is measured: the distance
of the ranks' sound gradients, made by the step's own kernels in its own precision, from the float64 reference.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from harness.numerics.bounds import probable, unit_roundoff, worst_case
from harness.probes.control import Control
from harness.probes.diagnosis.products import distance, dot, squares_of_sum

PERMUTATIONS = 5
"""At least five make a root mean square that is right within a factor of about 1.5."""

_ROUNDED = 0.4
"""Root mean square error of rounding many numbers to nearest, in unit roundoffs of their norm: 1 / sqrt 3 of a number between
1 and 2, over the root mean square of such numbers, 1.47 to 1.53."""


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
    samples: int
    scaled: Iterable[Tensor] = ()
    """`gradient` again, of the loss times factors that are no powers of two, divided by them: the same rounded otherwise."""
    spread: float = 1.0
    """Factor on the distance of `gradient` and `scaled` from the reference, where that is their own mean."""
    passes: int = 1
    """Backward passes that are accumulated."""


@dataclass(frozen=True)
class Noise:
    """Of one parameter, or of the whole; in the unit of the gradient. On rank 0."""

    permutation: float
    probable: float
    worst: float
    kernels: float
    """Distance of the sum of the ranks' sound gradients from the reference: where numbers cancel inside of a sample, no
    permutation shows it. Root mean square over `Local.gradient` and `Local.scaled`."""
    travel: float
    """Rounding of the gradient where it is accumulated and sent: once a pass, and once a rank that is added."""

    @property
    def bound(self) -> float:
        """The larger of what permutations show and what is probable."""
        return max(self.permutation, self.probable)

    @property
    def measured(self) -> float:
        """The floor in the step's own precision: of its kernels, and of what it accumulates and sends."""
        return math.hypot(self.kernels, self.travel)


def noise_of(
    control: Control,
    local: Local,
    sizes: Sequence[int],
    coarsest: torch.dtype,
    *,
    sent: torch.dtype,
    right: Tensor | None,
) -> list[Noise]:
    """The whole first, then each of the parameters, which have `sizes` elements. All ranks call; on rank 0 alone it counts.

    coarsest: of all dtypes in which a number of the step is rounded; sent: of those in which gradients are accumulated and
    sent. right: the float64 reference, flat [elements], on rank 0.
    """
    seen = torch.zeros(len(sizes), dtype=torch.float64)
    made = 0
    for other in local.permuted:
        seen += _squares_of_difference(other, local.gradient.split(list(sizes)))
        made += 1
        del other  # before the next one is made
    magnitudes = _squares(local.contributions, sizes) * max(local.samples, 1) * local.contributed**2
    scale = local.share**2
    sound = chain([local.gradient], local.scaled)
    kernels = torch.stack([squares_of_sum(control, one, local.share, right, sizes) for one in sound]).mean(0) * local.spread**2
    own = torch.stack([seen * scale / max(made, 1), magnitudes, _squares(local.gradient, sizes) * scale])
    control.meet()
    ranks = control.gather(own)
    if right is None:
        return []
    permutation = torch.stack([one[0] for one in ranks]).sum(0)
    total = torch.stack([one[1].sqrt() for one in ranks]).sum(0)
    brought = torch.maximum(torch.stack([one[2] for one in ranks]).sum(0), _squares(right, sizes)).sqrt()
    # What stands beside a parameter in the model passes its rounding on, even where the parameter's own terms cancel out.
    beside = torch.stack([one[2].sum() for one in ranks]).sum() * torch.tensor(sizes) / sum(sizes)
    total = torch.maximum(total, beside.sqrt())
    height = control.size.bit_length() + _height(local.samples)
    travel = _ROUNDED * unit_roundoff(sent) * math.sqrt(control.size - 1 + local.passes) * brought
    columns = (permutation.sqrt(), probable(height, coarsest) * total, worst_case(height, coarsest) * total)
    every = torch.stack([*columns, kernels.sqrt(), travel], dim=1)
    parts = [Noise(*row) for row in every.tolist()]
    return [Noise(*(math.hypot(*column) for column in zip(*(vars(part).values() for part in parts), strict=True))), *parts]


def _height(samples: int) -> int:
    """Of a sum over the samples as kernels make it, and of the layers' own products before it."""
    return max(samples, 1).bit_length() + 1


def _squares(flat: Tensor, sizes: Sequence[int]) -> Tensor:
    """Of each part of a vector."""
    return torch.tensor([dot(part, part) for part in flat.split(list(sizes))], dtype=torch.float64)


def _squares_of_difference(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """|one - other|^2, parameter by parameter."""
    pairs = [(a.reshape(-1), b) for a, b in zip(one, other, strict=True)]
    return torch.tensor([distance(*pair) ** 2 for pair in pairs], dtype=torch.float64)
