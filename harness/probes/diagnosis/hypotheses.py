"""Hypotheses: every mistake of weights that has a name, as the weights that it would give to the samples.

None is believed for its likelihood: each is held against what the gradient's inner products say, and those that explain all of
it within the noise are the verdict, together where they cannot be told apart.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.probes.diagnosis.facts import Facts, Shares
from harness.schema.record import SCALE, STALE, WEIGHTING


@dataclass(frozen=True)
class Hypothesis:
    """One way in which weights may have gone wrong."""

    kind: str
    """SCALE, WEIGHTING or STALE."""
    cause: str
    """A short name: mean_of_means, lost_rank, ..."""
    words: str
    advice: str
    shares: Shares
    """Of the batch of the result."""
    earlier: dict[int, float] = field(default_factory=dict)
    """Rank to the weight of its gradient of the batch before, per term."""
    base: str = ""
    """The cause that it comes on top of."""
    rank: int = -1
    sample: int = -1
    """Place in the rank's batch."""
    free: bool = False
    """Whether any common factor may stand before the shares."""


MEAN_OF_MEANS = "mean_of_means"
_MEAN_OF_MEANS = Hypothesis(
    WEIGHTING,
    MEAN_OF_MEANS,
    "mean of means: every rank weighs alike, whatever its batch counts",
    "divide the summed loss of each rank by what the batches of all ranks count, and sum over ranks",
    [],
)


def by_rank(facts: Facts) -> Iterator[Hypothesis]:
    """Those by which all samples of a rank have one weight, the simplest first."""
    for base in _bases(facts):
        if base.cause:
            yield base
        yield _on(base, kind=SCALE, cause="scale", words="", advice="", free=True)
        for rank in range(facts.size):
            yield from _of_one_rank(base, facts, rank)


def by_sample(facts: Facts) -> Iterator[Hypothesis]:
    """Those by which samples of a rank have different weights."""
    for base in _bases(facts):
        yield from _aliases(base, facts)
        for rank, own in enumerate(facts.terms[0]):
            for sample in range(len(own)):
                yield from _of_one_sample(base, facts, rank, sample)


def without_input(facts: Facts, base: str, rank: int, sample: int) -> list[float]:
    """Weight per term of each rank's batch where one sample never arrived, and nothing counted it."""
    counts = facts.counts
    counts[rank] -= facts.terms[0][rank][sample]
    if base:
        return [1 / (facts.size * count) if count else 0.0 for count in counts]
    return [1 / sum(counts)] * facts.size


def bases(facts: Facts) -> list[str]:
    """Causes that a lost sample comes on top of; "" is none."""
    found = [base.cause for base in _bases(facts)]
    return [*found, MEAN_OF_MEANS] if facts.by_rank and not facts.uneven else found


def _bases(facts: Facts) -> list[Hypothesis]:
    """What weights may be before a mistake: as they should be, or the mean of means; what is asked for comes first."""
    right = Hypothesis(WEIGHTING, "", "", "", facts.right())
    if facts.size == 1 or not facts.uneven:
        return [right]
    both = [right, replace(_MEAN_OF_MEANS, shares=facts.mean_of_means())]
    return both[::-1] if facts.by_rank else both


def _on(base: Hypothesis, **changes: Any) -> Hypothesis:
    return replace(base, base=base.cause, **changes)


def _of_one_rank(base: Hypothesis, facts: Facts, rank: int) -> Iterator[Hypothesis]:
    if facts.size == 1 or not facts.counts[rank]:
        return
    for cause, own, others, words, advice in (
        ("lost_rank", 0.0, 1.0, "rank {} is lost: its gradient has weight 0", "find out why rank {} contributes nothing"),
        (
            "absent_rank",
            *(0.0, _without(base, facts, rank)),
            "rank {} is left out, and of the others the mean is taken",
            "let rank {} take part, or say that its batch is not part of the mean",
        ),
        ("double_count", 2.0, 1.0, "rank {} is counted twice", "find out why rank {} adds its gradient twice"),
    ):
        factors = [own if other == rank else others for other in range(facts.size)]
        yield _on(
            base,
            kind=WEIGHTING,
            cause=cause,
            words=words.format(rank),
            advice=advice.format(rank),
            shares=_times(base.shares, factors),
            rank=rank,
        )
    yield from _late(base, facts, rank)


def _without(base: Hypothesis, facts: Facts, rank: int) -> float:
    """By how much the others weigh more where one rank is not part of the mean."""
    left = facts.size - 1.0 if base.cause else facts.total - facts.counts[rank]
    return (facts.size if base.cause else facts.total) / left if left else 1.0


def _late(base: Hypothesis, facts: Facts, rank: int) -> Iterator[Hypothesis]:
    if len(facts.terms) < 2 or facts.iteration < 2 or not facts.terms[1][rank]:
        return
    before = facts.mean_of_means(1) if base.cause else facts.even(1)
    factors = [0.0 if other == rank else 1.0 for other in range(facts.size)]
    yield _on(
        base,
        kind=STALE,
        cause="stale_rank",
        words=f"rank {rank} brings its gradient of the iteration before",
        advice=f"make rank {rank} wait for its backward, or for its buffer, before the gradient is sent",
        shares=_times(base.shares, factors),
        earlier={rank: before[rank][0]},
        rank=rank,
    )


def _aliases(base: Hypothesis, facts: Facts) -> Iterator[Hypothesis]:
    """A kept reference to `.grad` that the second pass overwrote: on all ranks, or on one."""
    several = [rank for rank, passes in enumerate(facts.passes) if len(passes) > 1]
    everywhere = [several] if len(several) > 1 else []
    for ranks in [*everywhere, *([rank] for rank in several)]:
        shares = [_aliased(own, facts.passes[rank]) if rank in ranks else list(own) for rank, own in enumerate(base.shares)]
        where = "every rank" if len(ranks) > 1 or facts.size == 1 else f"rank {ranks[0]}"
        yield _on(
            base,
            kind=WEIGHTING,
            cause="alias",
            words=f"on {where} the first backward pass is lost and the second counts twice: an alias of .grad",
            advice="clone .grad where it is kept, or clear it with set_to_none=True",
            shares=shares,
            rank=ranks[0] if len(ranks) == 1 else -1,
        )


def _aliased(own: list[float], passes: Sequence[range]) -> list[float]:
    factors = dict.fromkeys(passes[0], 0.0) | dict.fromkeys(passes[1], 2.0)
    return [weight * factors.get(sample, 1.0) for sample, weight in enumerate(own)]


def _of_one_sample(base: Hypothesis, facts: Facts, rank: int, sample: int) -> Iterator[Hypothesis]:
    where = f"sample {sample} of rank {rank}"
    for cause, factor, words, advice in (
        ("dropped_sample", 0.0, f"{where} is lost after it was counted", "its loss is masked, or its output detached"),
        ("double_sample", 2.0, f"{where} is counted twice", "find out where it enters a second time"),
    ):
        shares = [list(own) for own in base.shares]
        shares[rank][sample] *= factor
        yield _on(base, kind=WEIGHTING, cause=cause, words=words, advice=advice, shares=shares, rank=rank, sample=sample)
    if facts.terms[0][rank][sample] < facts.total:
        own_counts = facts.by_rank and not facts.uneven  # what was even is not, without it
        yield from (
            dropped_input(facts, one, rank, sample) for one in ([base.cause, MEAN_OF_MEANS] if own_counts else [base.cause])
        )


def dropped_input(facts: Facts, base: str, rank: int, sample: int) -> Hypothesis:
    """A sample that never arrived."""
    weights = without_input(facts, base, rank, sample)
    shares = [[weight] * len(own) for weight, own in zip(weights, facts.terms[0], strict=True)]
    shares[rank][sample] = 0.0
    return Hypothesis(
        WEIGHTING,
        "dropped_input",
        f"sample {sample} of rank {rank} never arrives, and nothing counts it",
        "look at the sampler, the collate function and drop_last",
        shares,
        base=base,
        rank=rank,
        sample=sample,
    )


def _times(shares: Shares, factors: list[float]) -> Shares:
    return [[weight * factor for weight in own] for own, factor in zip(shares, factors, strict=True)]


@dataclass(frozen=True)
class Named:
    """A factor's names."""

    words: str
    advice: str


_TOLERANCE = 2e-3
"""Factors that are closer than this count as equal: rounding puts less there, and factors that have names lie further apart."""


def name_factor(factor: float, facts: Facts) -> Named:
    """The candidates that are in a step, the likeliest first."""
    size, total, passes, iteration = facts.size, facts.total, max(map(len, facts.passes)), facts.iteration
    divide, twice = "divide the sum over ranks by the number of ranks, once", "divide by the number of ranks only once"
    clear = "call zero_grad before each step"
    candidates = [
        (size, "W, the number of ranks: the sum over ranks is not divided by it", divide),
        (1 / size, "1/W: it is divided by the number of ranks twice", twice),
        (total, "N, what the loss of the batch counts: the sum is not divided by it", "use the mean, or divide by N"),
        (1 / total if total else math.nan, "1/N: it is divided by what the batch counts twice", "divide by N only once"),
        (passes, "the number of accumulation steps: gradients are not divided by it", "divide each pass's loss by it"),
        (
            1 / passes if passes else math.nan,
            "1 over the number of accumulation steps",
            "divide by the number of accumulation steps only once",
        ),
        (
            _left_over(facts.carries, iteration),
            f"what {iteration} iterations leave that never clear the gradient",
            clear,
        ),
        (2, "2: everything is counted twice", "look for a second backward, or a gradient that was not cleared"),
        (0.5, "1/2", "look for a sum of two that is divided by two"),
        (0, "0: nothing arrives", "look whether the loss depends on the parameters, and whether the result is copied back"),
    ]
    fitting = [(words, advice) for value, words, advice in candidates if value != 1 and close(factor, value)]
    if not fitting:
        return Named(
            "none of W, N, accumulation steps or iterations",
            "look for what multiplies the loss or the gradient: a loss scale, a clipped norm",
        )
    every_word, every_advice = zip(*dict(fitting).items(), strict=True)
    return Named("; or ".join(every_word), "; or ".join(dict.fromkeys(every_advice)))


def _left_over(carries: float, iteration: int) -> float:
    """1 + c + ... + c^(k - 1); NaN, which is close to nothing, where that is beyond all numbers."""
    try:
        return sum(carries**before for before in range(iteration))
    except OverflowError:
        return math.nan


def close(factor: float, value: float) -> bool:
    """Whether a factor may be that value."""
    return abs(factor - value) <= _TOLERANCE * max(abs(value), 1e-3)
