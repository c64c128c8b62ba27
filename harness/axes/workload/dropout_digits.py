"""A network with dropout on digits, whose masks come from the rank or from the sample."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.axes.workload.base import Workload
from harness.axes.workload.digits import load_digits
from harness.schema.parameters import Count, Probability, Width

_ROUNDS = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 0))
"""(shift, factor) of splitmix64's finalizer (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014), as
signed 64-bit integers."""
_BITS = 24
"""Of a uniform number: as many as float32 holds."""


class DropoutDigitsWorkload(Workload):
    """Two layers of `hidden` units with dropout `p` on 8x8 digits; cross entropy.

    masks: `rank`, drawn in order from the rank's own generator, as torch's dropout does: ranks, micro-batches and second
    forwards draw others. `sample`: a function of the sample's index in the data, so that it has one mask wherever it lands.
    """

    def __init__(
        self,
        hidden: Width = 64,
        p: Probability = 0.5,
        masks: Literal["rank", "sample"] = "rank",
        samples: Count | None = None,
    ) -> None:
        super().__init__(
            model=partial(DroppingNetwork, hidden, p, by_sample=masks == "sample"),
            loss=nn.CrossEntropyLoss,
            data=_load,
            samples=samples,
        )


def _load() -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, the index of each sample, and labels."""
    pixels, labels = load_digits()
    return pixels, torch.arange(len(labels)), labels


class DroppingNetwork(nn.Module):
    """Logits [samples, 10]."""

    def __init__(self, hidden: int, p: float, *, by_sample: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 10)
        kind = SampleDropout if by_sample else RankDropout
        self.drop_first, self.drop_second = kind(p), kind(p)

    def forward(self, pixels: Tensor, index: Tensor) -> Tensor:
        hidden = self.drop_first(functional.relu(self.first(pixels.flatten(1))), index)
        hidden = self.drop_second(functional.relu(self.second(hidden)), index)
        logits: Tensor = self.last(hidden)
        return logits


class RankDropout(nn.Dropout):
    """Masks [samples, features] in order from torch's generator; drawn as float32, so that they are the same in every dtype."""

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:  # type: ignore[override]
        if not self.training:
            return hidden
        kept = torch.rand(hidden.shape, dtype=torch.float32, device=hidden.device) >= self.p
        return hidden * kept / (1 - self.p)


class SampleDropout(nn.Module):
    """Masks from the index of the sample, the place of the feature, and a number drawn when the module is made."""

    salt: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("salt", torch.randint(2**62, ()))

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        if not self.training:
            return hidden
        places = torch.arange(hidden.shape[-1], device=hidden.device)
        mixed = _mix(_mix(index[..., None] + self.salt) + places)
        uniform = (mixed & (2**_BITS - 1)).to(torch.float32) / 2**_BITS
        kept: Tensor = uniform >= self.p
        return hidden * kept / (1 - self.p)


def _mix(bits: Tensor) -> Tensor:
    """Spread int64 bits evenly; arithmetic wraps. torch shifts with the sign, so the bits that come in are cleared."""
    for shift, factor in _ROUNDS:
        bits = bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))
        bits = bits * factor if factor else bits
    return bits
