"""The choice among hypotheses, and the weights that were found, as texts and rows. On rank 0."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.numerics.weights import Weights
from harness.probes.diagnosis.facts import Facts, Shares
from harness.probes.diagnosis.hypotheses import Hypothesis, name_factor
from harness.probes.diagnosis.meaning import Meaning
from harness.probes.diagnosis.products import Rest
from harness.schema.record import SCALE, Weight

Tried = tuple[Hypothesis, float, float]
"""A hypothesis, the factor before its shares where that is free, and what it leaves of d."""


def chosen(blank: Meaning, tried: Sequence[Tried], enough: float, facts: Facts) -> Meaning:
    """Those that leave nothing; the first of them names the verdict, and all are told."""
    fitting = [(one, factor, left) for one, factor, left in tried if left <= enough]
    plain = {one.cause for one, *_ in fitting}
    fitting = [(one, factor, left) for one, factor, left in fitting if not (one.free and one.base in plain)]  # times 1
    if not fitting:
        return blank
    first, factor, left = fitting[0]
    named = [_named(one, own, facts) for one, own, _ in fitting]
    words = list(dict.fromkeys(words for words, _ in named))
    return replace(
        blank,
        verdict=first.kind,
        cause="|".join(dict.fromkeys(_cause(one) for one, *_ in fitting)),
        words=_either(words),
        advice=named[0][1],
        factor=factor if first.kind == SCALE else math.nan,
        rank=first.rank,
        sample=first.sample,
        left=left,
        fitting=len(words),
    )


def held(rest: Rest, one: Hypothesis, shares: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """(factor, what is left)."""
    own, should = torch.tensor(shares, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    return rest.best(own, -should) if one.free else (math.nan, rest.left(own - should))


def flat(shares: Shares) -> list[float]:
    """By sample, rank after rank."""
    return [weight for own in shares for weight in own]


def flat_by_rank(shares: Shares) -> list[float]:
    """By rank; 0 of one that has no sample."""
    return [own[0] if own else 0.0 for own in shares]


def earlier(one: Hypothesis, size: int, places: int) -> list[float]:
    """By rank, of the batches before."""
    return [one.earlier.get(place, 0.0) if place < size else 0.0 for place in range(places)]


def _cause(one: Hypothesis) -> str:
    return f"{one.base}+{one.cause}" if one.base else one.cause


def _named(one: Hypothesis, factor: float, facts: Facts) -> tuple[str, str]:
    """(words, advice)"""
    words, advice = one.words, one.advice
    if one.kind == SCALE:
        named = name_factor(factor, facts)
        words, advice = f"it is {factor:.6g} times what it should be, {named.words}", named.advice
    return f"{words}, on top of the mean of means" if one.base else words, advice


def _either(words: Sequence[str]) -> str:
    shown = "; or ".join(words[:3])
    more = f"; or one of {len(words) - 3} others" if len(words) > 3 else ""
    return f"{shown}{more}: which of them it is, the gradient cannot tell" if len(words) > 1 else shown


def rank_rows(solved: Weights, right: Sequence[float], facts: Facts) -> list[Weight]:
    """Of whole ranks, lag after lag."""
    places = [(at, at % facts.size, at // facts.size) for at in range(len(right))]
    return [
        Weight("", rank, -1, right[at] + solved.values[at], right[at], solved.errors[at], _same(solved, at), lag)
        for at, rank, lag in places
    ]


def sample_rows(solved: Weights, right: Sequence[float], facts: Facts) -> list[Weight]:
    """Of single samples, rank after rank."""
    places = [(rank, sample) for rank, own in enumerate(facts.terms[0]) for sample in range(len(own))]
    return [
        Weight("", rank, sample, right[at] + solved.values[at], right[at], solved.errors[at], _same(solved, at))
        for at, (rank, sample) in enumerate(places)
    ]


def _same(solved: Weights, place: int) -> int:
    group = solved.groups[solved.group_of[place]]
    return group[0] if group[0] != place else -1
