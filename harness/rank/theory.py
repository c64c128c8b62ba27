"""What a case's gradient should be, and what it must come out as when its normalization or its fault has its way."""

from functools import partial

from harness.axes.fault.base import Share, Situation
from harness.rank.trial import Trial


def ideal(trial: Trial) -> list[Share]:
    """Every term of the batch weighs the same: [rank]. Where nothing is summed over ranks, every term of a rank's shard."""
    terms = trial.terms()
    totals = [sum(map(sum, terms))] * len(terms) if trial.spans_ranks else [sum(own) for own in terms]
    return [Share(tuple(1 / total for _ in own)) for own, total in zip(terms, totals, strict=True)]


def right(trial: Trial) -> list[Share]:
    """What samples weigh without a fault: [rank]. Under `rank_mean` not what they should."""
    return weigh(trial, trial.terms())


def expected(trial: Trial) -> list[Share]:
    """What samples weigh in the last iteration's result: [rank]."""
    return trial.parts.fault.expected(situation(trial))


def situation(trial: Trial) -> Situation:
    """The facts of a case that a fault's theory rests on."""
    lags = range(trial.parts.fault.batches)
    return Situation(
        terms=tuple(tuple(tuple(own) for own in trial.terms(lag)) for lag in lags),
        weigh=partial(weigh, trial),
        passes=tuple(tuple(trial.parts.reduction.passes(own)) for own in trial.terms()),
        carry=_carry(trial),
        iteration=trial.iterations,
    )


def weigh(trial: Trial, terms: "list[list[float]]") -> list[Share]:
    """The shares of ranks whose samples count `terms`, by the case's normalization."""
    total = sum(map(sum, terms))
    normalization = trial.parts.normalization
    divisor = normalization.divisor(len(terms)) if trial.spans_ranks else 1
    denominators = [normalization.denominator(sum(own), total if trial.spans_ranks else sum(own)) for own in terms]
    return [Share(tuple(1 / (n * divisor) for _ in own)) for own, n in zip(terms, denominators, strict=True)]


def _carry(trial: Trial) -> float:
    """How much of what every rank finds in `.grad` is in the next result: each adds its leftover, and the sum is divided."""
    leftover = [trial.parts.reduction.leftover(trial.denominator(rank)) for rank in range(trial.world.size)]
    if not trial.spans_ranks:
        return leftover[trial.world.rank]
    return sum(leftover) / trial.parts.normalization.divisor(trial.world.size)
