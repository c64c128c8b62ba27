"""Variants of a case by which its gradient is explained: in float64, without its sum, and on a permuted batch."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.axes.clip.base import Clip
from harness.axes.communication.base import Communication
from harness.axes.fault.base import Fault
from harness.axes.precision.base import Precision
from harness.axes.sharding.base import Sharding
from harness.axes.sync.base import Sync
from harness.rank.rig import Parts


def in_float64(parts: Parts) -> Parts:
    """The same step with every number in float64, and nothing clipped."""
    return replace(parts, precision=_Float64(), communication=Communication(), clip=Clip())


def quiet(parts: Parts) -> Parts:
    """The same step up to its sum: losses are divided as the aggregation has them divided, and nothing is sent."""
    return replace(parts, aggregation=_Quiet(parts.aggregation), communication=Communication(), sync=Sync(), clip=Clip())


def permuted(parts: Parts, seed: int) -> Parts:
    """`quiet`, each rank's samples in another order, and nothing wrong with them: what rounding makes of equal sums."""
    return replace(quiet(parts), fault=Fault(), sharding=_Permuted(parts.sharding, seed))


def sound(parts: Parts) -> Parts:
    """`permuted` with the samples in their order."""
    return replace(quiet(parts), fault=Fault())


class _Float64(Precision):
    """float64 everywhere."""

    parameter_dtype = torch.float64


class _Quiet(Aggregation):
    """Nothing is sent."""

    def __init__(self, other: Aggregation) -> None:
        self.spans_ranks = other.spans_ranks  # type: ignore[misc]
        self.averages = other.averages  # type: ignore[misc]
        self.in_backward = other.in_backward  # type: ignore[misc]
        self.needs_own_forward = other.needs_own_forward  # type: ignore[misc]

    def begin(self, model: nn.Module, fabric: Fabric) -> Exchange:
        return Exchange(model)


class _Permuted(Sharding):
    """Another cut, with the samples of each part in another order."""

    def __init__(self, other: Sharding, seed: int) -> None:
        self._other, self._seed = other, seed

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        drawn = random.Random(self._seed)
        return [drawn.sample(own, len(own)) for own in self._other.shards(terms, world_size)]
