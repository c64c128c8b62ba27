"""What a case itself is held against: its options on one rank alone, with nothing between the ranks."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from harness.axes.aggregation.base import Aggregation
from harness.axes.normalization.base import Normalization
from harness.axes.reduction.base import LocalWork, SharedForward
from harness.axes.sharding.base import Sharding
from harness.rank.assemble import base_of
from harness.rank.rig import Parts
from harness.schema.case import AXES, Baseline, kept_in
from harness.schema.context import Option


def on_one_rank(parts: Parts) -> Parts:
    """The whole batch on the only rank, reduced, clipped and computed as the case does."""
    return _baseline(parts, Baseline.ONE_RANK, aggregation=_Alone(), sharding=_WholeBatch())


def bare_step(parts: Parts) -> Parts:
    """Forward and backward of each rank's mean loss, and nothing else."""
    return _baseline(parts, Baseline.BARE_STEP, aggregation=_Alone(), reduction=_BareStep(), normalization=_OwnMean())


def silent(parts: Parts) -> Parts:
    """The same step on every rank, with nothing between the ranks: with a second forward where the case makes one."""
    aggregation = _AloneTwice() if parts.aggregation.needs_own_forward else _Alone()
    return _baseline(parts, Baseline.WITHOUT_COMMUNICATION, aggregation=aggregation)


def _baseline(parts: Parts, baseline: Baseline, **own: Option) -> Parts:
    """Replace the options of the axes on which the baseline does not depend: by `own`, or by their base, which does nothing."""
    replaced = set(AXES) - set(kept_in(baseline))
    assert own.keys() <= replaced, "what the baseline depends on is in the key by which it is kept"
    return replace(parts, **{axis: own[axis] if axis in own else base_of(axis)() for axis in replaced})  # type: ignore[arg-type]


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


class _OwnMean(Normalization):
    """The mean over each rank's own samples."""

    def denominator(self, own: float, total: float) -> float:
        return own

    def divisor(self, world_size: int) -> int:
        return 1


class _BareStep(SharedForward):
    """The mean loss, forward and backward."""

    def forward(self, work: LocalWork) -> Tensor:
        return work.criterion.mean(work.model(*work.batch.inputs), work.batch.target)

    def backward(self, work: LocalWork, result: Tensor) -> None:
        result.backward()
