"""Fault: a known mistake, planted in a case as a small real change in what runs, and what theory says of its result."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.schema.context import Context, Option
from harness.schema.parameters import Whole

Pass = Callable[[bool], AbstractContextManager[Any]]
"""Made for each case; entered around every forward and backward of several, told whether it is the last."""
Contribution = Callable[[list[Tensor]], None]
"""Made for each case; changes in place what this rank gives to the sum over ranks."""
Sum = Callable[[list[Tensor]], None]
"""Leaves in the gradients their sum over ranks."""


@dataclass(frozen=True)
class Share:
    """What one rank's samples weigh in a gradient: it is the sum of weight * (gradient of the sample's loss)."""

    weights: tuple[float | None, ...]
    """By sample of the rank's shard; 0: the sample enters the model and its loss counts nothing; None: it never enters."""
    lag: int = 0
    """Of which batch: 0 of the last iteration's, 1 of the one before."""

    def scaled(self, factor: float) -> "Share":
        """Every weight times `factor`."""
        return Share(tuple(None if weight is None else weight * factor for weight in self.weights), self.lag)


@dataclass(frozen=True)
class Situation:
    """What the theory of a fault rests on: the ranks whose gradients are summed, and how."""

    terms: tuple[tuple[tuple[float, ...], ...], ...]
    """What each sample counts: [lag][rank][sample]."""
    weigh: Callable[[Sequence[Sequence[float]]], list[Share]]
    """The shares that a normalization gives to ranks with such terms, [rank][sample]."""
    passes: tuple[tuple[range, ...], ...]
    """Samples of each rank, as one backward after the other takes them."""
    carries: tuple[float, ...]
    """What is left, of a gradient that every rank finds in `.grad`, in the result of the iteration: [rank]."""
    iteration: int
    """Of the result, counted from 1 since the case began."""

    @property
    def world_size(self) -> int:
        """Ranks whose gradients are summed."""
        return len(self.passes)

    @property
    def right(self) -> list[Share]:
        """The shares without a fault."""
        return self.weigh(self.terms[0])


class Fault(Option):
    """One mistake. Every method's default is to do right. `expected` is the theory of what the others make of the gradient."""

    across_ranks: ClassVar[bool] = False
    """Whether it is a mistake in the summing over ranks."""
    in_division: ClassVar[bool] = False
    """Whether it is a mistake in what an aggregation that averages does by itself."""
    planted: ClassVar[bool] = True
    """False for the one that is none."""
    batches: ClassVar[int] = 1
    """Different batches that consecutive iterations use in turn; the last iteration's is every case's."""
    leaves_own: ClassVar[bool] = False
    """Whether each rank is left with its own share alone, so that ranks differ."""

    def unsupported(self, context: Context) -> str | None:
        if self.across_ranks and not context.spans_ranks:
            return "the fault lies in summing over ranks, and this aggregation sums nothing"
        if self.planted and context.in_backward:
            return "faults are planted around the local gradient, and this aggregation sums it during backward"
        if self.in_division and context.averages:
            return "the fault lies in what is done with a sum, and this aggregation averages by itself"
        return None

    def expected(self, situation: Situation) -> list[Share] | None:
        """What each rank's samples weigh in the last iteration's result; None where it is a race."""
        return situation.right

    def enters(self, rank: int, samples: int) -> list[int]:
        """Which samples of the rank's shard it sees at all."""
        return list(range(samples))

    def inputs(self, rank: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `model` of the case is called with."""
        return inputs

    def model(self, model: nn.Module) -> nn.Module:
        """The module that the passes go through."""
        return model

    def clear(self, model: nn.Module) -> None:
        """Before each iteration."""
        model.zero_grad()

    def passes(self, parameters: list[nn.Parameter]) -> Pass:
        """Around each of several passes."""
        return lambda last: nullcontext()

    def contribution(self, rank: int) -> Contribution:
        """Between the local gradient and the sum."""
        return lambda gradients: None

    def total(self, summed: Sum, gradients: list[Tensor], group: ProcessGroup, meet: Callable[[], None]) -> None:
        """The sum over ranks; `summed` is the aggregation's. `meet` waits for all ranks, beside `group`."""
        summed(gradients)

    def denominator(self, denominator: float, divisor: int, world_size: int) -> float:
        """What the rank's sum of losses is divided by; right are `denominator` and `divisor`."""
        return denominator

    def divisor(self, divisor: int, world_size: int) -> int:
        """What the sum over ranks is divided by; right is `divisor`."""
        return divisor


class OneRankFault(Fault):
    """A mistake of one rank."""

    def __init__(self, rank: Whole = 0) -> None:
        self._rank = rank

    def unsupported(self, context: Context) -> str | None:
        if self._rank >= context.world_size:
            return f"there is no rank {self._rank} among {context.world_size}"
        return super().unsupported(context)

    def changed(self, shares: list[Share], share: Share) -> list[Share]:
        """`shares` with this rank's replaced."""
        return [share if rank == self._rank else other for rank, other in enumerate(shares)]


class OneSampleFault(OneRankFault):
    """A mistake with one sample of one rank."""

    def __init__(self, rank: Whole = 0, sample: Whole = 0) -> None:
        super().__init__(rank)
        self._sample = sample

    def unsupported(self, context: Context) -> str | None:
        reason = super().unsupported(context)
        if reason or self._sample < context.shard_sizes[self._rank]:
            return reason
        return f"rank {self._rank} has {context.shard_sizes[self._rank]} samples, and no sample {self._sample}"
