"""What a case's gradient should be, and what it must come out as when its normalization or its fault has its way."""

from collections.abc import Sequence
from functools import partial

from harness.axes.fault.base import Share, Situation
from harness.rank.rig import Cut


def ideal(cut: Cut) -> list[Share]:
    """Every term of the batch weighs the same: [rank]. Where nothing is summed over ranks, every term of a rank's shard."""
    terms = cut.terms()
    totals = [sum(map(sum, terms))] * len(terms) if cut.spans_ranks else [sum(own) for own in terms]
    return [Share(tuple(1 / total for _ in own)) for own, total in zip(terms, totals, strict=True)]


def right(cut: Cut) -> list[Share]:
    """What samples weigh without a fault: [rank]. Under `rank_mean` not always what they should."""
    return weigh(cut, cut.terms())


def expected(cut: Cut, iteration: int) -> list[Share] | None:
    """What samples weigh in the result of an iteration: [rank]; None where no theory can say. Equal on all ranks."""
    if other_function(cut) or (cut.parts.batchnorm.synced and cut.material.coupling):
        return None  # where all samples are normalized together, none has a gradient of its own
    return cut.parts.fault.expected(situation(cut, iteration))


def other_function(cut: Cut) -> str:
    """By what the case differentiates another function than its reference; empty where it does not."""
    coupling, reduction = cut.material.coupling, cut.parts.reduction
    if coupling and any(reduction.splits(len(shard)) for shard in cut.shards()):
        return coupling[0]  # parts of the batch by themselves
    twice = cut.parts.aggregation.needs_own_forward and reduction.keeps_graph
    return "dropout" if "dropout" in coupling and twice else ""  # a second forward draws other masks


def acts(cut: Cut, iteration: int) -> bool:
    """Whether the case's fault changes what any sample weighs."""
    fault = cut.parts.fault
    return (fault.leaves_own and cut.world_size > 1) or fault.expected(situation(cut, iteration)) != right(cut)


def situation(cut: Cut, iteration: int) -> Situation:
    """The facts of a case that a fault's theory rests on."""
    lags = range(cut.parts.fault.batches)
    return Situation(
        terms=tuple(tuple(tuple(own) for own in cut.terms(lag)) for lag in lags),
        weigh=partial(weigh, cut),
        passes=tuple(tuple(cut.parts.reduction.passes(own)) for own in cut.terms()),
        carries=_carries(cut),
        iteration=iteration,
    )


def weigh(cut: Cut, terms: Sequence[Sequence[float]]) -> list[Share]:
    """The shares of ranks whose samples count `terms`, by the two divisors of the case's normalization."""
    total, normalization = sum(map(sum, terms)), cut.parts.normalization
    divisor = normalization.divisor(len(terms)) if cut.spans_ranks else 1
    denominators = [normalization.denominator(sum(own), total if cut.spans_ranks else sum(own)) for own in terms]
    return [Share(tuple(1 / (n * divisor) for _ in own)) for own, n in zip(terms, denominators, strict=True)]


def _carries(cut: Cut) -> tuple[float, ...]:
    """How much of what a rank finds in `.grad` is in its next result: each adds its leftover, and the sum is divided."""
    denominators = zip(cut.denominators(), cut.counts(), strict=True)
    leftover = [cut.parts.reduction.leftover(denominator) if count else 1.0 for denominator, count in denominators]
    return tuple(leftover) if not cut.spans_ranks else (sum(leftover) / cut.divisor,) * cut.world_size
