"""What a case itself is held against: its options on one rank alone, with nothing between the ranks."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from harness.axes.aggregation.base import Aggregation
from harness.axes.batchnorm.base import Batchnorm
from harness.axes.clip.base import Clip
from harness.axes.communication.base import Communication
from harness.axes.fault.base import Fault
from harness.axes.reduction.base import LocalWork, SharedForward
from harness.axes.sharding.base import Sharding
from harness.axes.sync.base import Sync
from harness.rank.assemble import Parts


def on_one_rank(parts: Parts) -> Parts:
    """The whole batch on the only rank, reduced, clipped and computed as the case does."""
    return replace(_without_others(parts), sharding=_WholeBatch())


def bare_step(parts: Parts) -> Parts:
    """Forward and backward of each rank's mean loss, and nothing else."""
    return replace(_without_others(parts), reduction=_BareStep(), clip=Clip())


def silent(parts: Parts) -> Parts:
    """The same step on every rank, with nothing between the ranks: with a second forward where the case makes one."""
    aggregation = _AloneTwice() if parts.aggregation.needs_own_forward else _Alone()
    return replace(_without_others(parts), aggregation=aggregation)


def _without_others(parts: Parts) -> Parts:
    parts = replace(parts, aggregation=_Alone(), communication=Communication(), sync=Sync())
    return replace(parts, batchnorm=Batchnorm(), fault=Fault())


class _Alone(Aggregation):
    """Nothing is sent."""

    spans_ranks = False


class _AloneTwice(_Alone):
    """Nothing is sent; the last of several passes has a forward of its own all the same."""

    needs_own_forward = True


class _WholeBatch(Sharding):
    """Everything on the first rank."""

    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        return [list(range(len(terms)))] + [[] for _ in range(world_size - 1)]


class _BareStep(SharedForward):
    """The mean loss, forward and backward."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.mean(work.model(*work.batch.inputs), work.batch.target)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        result.backward()
