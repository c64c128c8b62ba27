"""The search for a gradient's meaning, from the simplest explanation to the last.

The gradient less the right one, d, is held against every hypothesis by inner products: first in terms of the ranks' gradients,
then of the samples'; then other functions are tried. Rank 0 decides, and tells the others what to compute next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.numerics.weights import Products, effective_weights
from harness.probes.diagnosis.batches import unless_refused
from harness.probes.diagnosis.choice import Tried, chosen, earlier, flat, flat_by_rank, held, rank_rows, sample_rows
from harness.probes.diagnosis.hypotheses import bases, by_rank, by_sample, dropped_input, without_input
from harness.probes.diagnosis.meaning import Meaning, named, tell
from harness.probes.diagnosis.products import (
    PIECE_BYTES,
    RESOLVED,
    Gram,
    Rest,
    distance,
    dot,
    everywhere,
    gram_of,
    minus,
    projected,
    summed_over_ranks,
    with_vector,
)
from harness.probes.diagnosis.unlike import meaning_of_unlike, unlike_ranks
from harness.probes.diagnosis.witness import Witness
from harness.schema.record import OTHER_FUNCTION, STALE, UNEXPLAINED, WEIGHTING


def meaning_of(witness: Witness, value: Tensor, noise: float, local: Tensor | None = None) -> Meaning:
    """What `value` is. noise: |d| that rounding may leave; local: what this rank brought, where that can be seen."""
    control = witness.control
    unlike = unlike_ranks(control, value)
    if any(unlike):
        return meaning_of_unlike(witness, value, noise, unlike)
    right = witness.right()
    rest = everywhere(control, right, witness.blank(len(value)))
    length = dot(rest, rest) ** 0.5
    rest.neg_().add_(value)
    return _Search(witness, value, rest, length, noise, local).meaning()


@dataclass
class _Search:
    """From the simplest explanation to the last. All ranks call alike."""

    witness: Witness
    value: Tensor
    rest: Tensor
    """d, in float64."""
    length: float
    noise: float
    local: Tensor | None
    _parts: list[Tensor] = field(default_factory=list)
    _of_ranks_now: Rest | None = None
    """Rank 0's: in terms of the ranks' gradients, of both batches."""
    _left_by_samples: float = math.inf
    """Rank 0's: what no weights of samples explain."""

    def __post_init__(self) -> None:
        self.facts, self.control = self.witness.facts, self.witness.control
        self.distance = dot(self.rest, self.rest) ** 0.5
        self.enough = max(self.noise, RESOLVED * self.distance)

    def meaning(self) -> Meaning:
        blank = self._by_rank()
        if not math.isfinite(self.distance):
            return replace(blank, verdict=UNEXPLAINED, cause=NONFINITE, words="the gradient is not finite", advice=_FINITE)
        if self.distance <= self.noise or blank.verdict:
            return blank
        for look in (self._by_sample, self._without_input, self._other_function):
            found = look(blank)
            if found.verdict:
                return found
            blank = found
        return self._by_any_weights(blank)

    def _by_rank(self) -> Meaning:
        lags = range(len(self.facts.terms))
        gram = self._gram("ranks", [self.witness.summed(lag) for lag in lags])
        with_rest = with_vector(self.control, gram, [self.witness.summed(lag) for lag in lags], self.rest)
        found = None
        if self.control.rank == 0:
            first = torch.tensor([lags.stop * rank for rank in range(self.facts.size)])
            every = torch.cat([first + lag for lag in lags])
            self._of_ranks_now = Rest(gram.products[every][:, every], with_rest[every], self.distance**2)
            found = self._of_ranks(self._of_ranks_now)
        return tell(self.control, found)

    def _of_ranks(self, rest: Rest) -> Meaning:
        size, right = self.facts.size, flat_by_rank(self.facts.right())
        now = Rest(rest.gram[:size, :size], rest.with_rest[:size], rest.squared)
        solved = effective_weights(now.products, noise=self.noise / max(self.distance, 1e-300))
        blank = Meaning(
            distance=self.distance,
            left=self.distance,
            length=self.length,
            independent=solved.rank,
            condition=solved.condition,
            residual=solved.residual * self.distance / self.length if self.length else math.nan,
            weights=tuple(rank_rows(solved, right, self.facts)),
        )
        late = effective_weights(rest.products) if len(rest.gram) > size else solved
        if late.residual * self.distance <= self.enough < solved.residual * self.distance:
            blank = replace(blank, weights=tuple(rank_rows(late, [*right, *[0.0] * (len(rest.gram) - size)], self.facts)))
        if not math.isfinite(self.distance):
            return blank
        padding = [0.0] * (len(rest.gram) - size)
        should, tried = [*right, *padding], list[Tried]()
        for one in by_rank(self.facts):
            shares = [*flat_by_rank(one.shares), *earlier(one, size, len(padding))]
            tried.append((one, *held(rest, one, shares, should)))
            if self.distance <= self.noise and not blank.also and self._hidden(rest, tried[-1], shares, should):
                blank = replace(blank, also=one.words)
        return blank if self.distance <= self.noise else chosen(blank, tried, self.enough, self.facts)

    def _hidden(self, rest: Rest, tried: Tried, shares: Sequence[float], right: Sequence[float]) -> bool:
        """Return True for a mistake that changes the gradient, and that what is seen allows as well as no mistake."""
        one, _, left = tried
        change = torch.tensor(shares, dtype=torch.float64) - torch.tensor(right, dtype=torch.float64)
        return not one.free and left <= self.enough and rest.length(change) > _HARMLESS * self.length

    def _by_sample(self, blank: Meaning) -> Meaning:
        """Where the samples are few enough."""
        if sum(map(len, self.facts.terms[0])) > self.witness.sample_limit():
            return blank
        self._parts = list(self.witness.samples())
        gram = self._gram("samples", self._parts)
        with_rest = with_vector(self.control, gram, self._parts, self.rest)
        found = None
        if self.control.rank == 0:
            right = flat(self.facts.right())
            rest = Rest(gram.products, with_rest, self.distance**2)
            tried = [(one, *held(rest, one, flat(one.shares), right)) for one in by_sample(self.facts)]
            solved = effective_weights(rest.products, noise=self.noise / self.distance)
            self._left_by_samples = solved.residual * self.distance
            found = chosen(blank, tried, self.enough, self.facts)
            if self._left_by_samples <= self.enough:  # else they are no weights of anything
                found = replace(found, weights=(*blank.weights, *sample_rows(solved, right, self.facts)))
        return tell(self.control, found)

    def _without_input(self, blank: Meaning) -> Meaning:
        """A sample that never arrived, where the others' gradients depend on it."""
        if not self.facts.coupled or sum(map(len, self.facts.terms[0])) > self.witness.sample_limit():
            return blank
        tried = [self._lacking(base, sample) for base in bases(self.facts) for sample in range(self._most_samples())]
        self.control.meet()
        lefts = torch.stack(self.control.all_gather(torch.tensor(tried, dtype=torch.float64)))  # [rank, base x sample]
        fitting = [(place, rank) for rank, place in (lefts <= self.enough).nonzero().tolist()]
        found = []
        for place, rank in sorted(fitting):
            base, sample = bases(self.facts)[place // self._most_samples()], place % self._most_samples()
            found.append((dropped_input(self.facts, base, rank, sample), math.nan, float(lefts[rank, place])))
        return chosen(blank, found, self.enough, self.facts)

    def _most_samples(self) -> int:
        return max(map(len, self.facts.terms[0]))

    def _lacking(self, base: str, sample: int) -> float:
        """What is left if this rank lacks that sample."""
        rank, own = self.control.rank, self.facts.terms[0][self.control.rank]
        known = sample < len(own) and len(own) > 1 and own[sample] < self.facts.total
        weights = without_input(self.facts, base, rank, sample) if known else [0.0] * self.facts.size
        others = self._others(base) if base else None
        missing = unless_refused(lambda: self.witness.without(sample)) if known else None
        if missing is None:
            return math.inf
        if others is None:  # the right gradient, value - rest, over another denominator
            factor = weights[rank] * self.facts.total
            left = minus(self.rest, self.value, 1 - 1 / factor).mul_(factor)
            left.add_(self.witness.summed(), alpha=weights[rank])
        else:
            left = minus(self.value, others)
        left.sub_(missing, alpha=weights[rank])
        return float(dot(left, left) ** 0.5)

    def _others(self, base: str) -> Tensor:
        """The mean of the other ranks' means. All ranks call."""
        counts = self.facts.counts
        weight = 1 / (self.facts.size * counts[self.control.rank]) if counts[self.control.rank] else 0.0
        total = self.witness.kept(f"{base}.total", lambda: summed_over_ranks(self.control, self.witness.summed(), weight))
        return total.double().sub(self.witness.summed(), alpha=weight)

    def _other_function(self, blank: Meaning) -> Meaning:
        """Whether what a rank brings is no weighting of its samples' gradients, or is one of them taken one by one."""
        if self.local is None:
            return blank
        _, left = projected(self.local, self.witness.summed())
        norm = dot(self.local, self.local) ** 0.5
        foreign = left > max(RESOLVED * norm, self.noise) and not self._spanned(norm)
        left = self._left_one_by_one(norm) if self.control.any(foreign) and self.facts.coupled else math.inf
        single = left < math.inf
        self.control.meet()
        told = self.control.all_gather(torch.tensor(float(foreign), dtype=torch.float64))
        ranks = [rank for rank, flag in enumerate(told) if flag]
        if not ranks:
            return blank
        how = "the model sees samples one by one" if single else "no weighting of its samples' gradients makes it"
        how += ", and that is not all" if single and left > self.enough else ""
        return replace(
            blank,
            verdict=OTHER_FUNCTION,
            cause="one_by_one" if single else "other_function",
            words=f"{named(ranks)} differentiate{'s' * (len(ranks) == 1)} another function than the reference: {how}",
            advice=_ALONE if single else "compare the model, its mode, its masks and its statistics with the reference's",
            left=left if single else blank.left,
            fitting=1,
        )

    def _left_one_by_one(self, norm: float) -> float:
        """What is left of d if ranks see samples one by one, and nothing else is wrong; inf where some rank does not."""
        apart = unless_refused(self.witness.apart)
        left = math.inf if apart is None or self.local is None else projected(self.local, apart)[1]
        if self.control.any(left > max(RESOLVED * norm, self.noise)):
            return math.inf
        assert apart is not None
        return distance(self.value, summed_over_ranks(self.control, apart, 1 / self.facts.total))

    def _spanned(self, norm: float) -> bool:
        """Whether the local gradient is some weighting of the samples of this rank."""
        if not self._parts:
            return False
        assert self.local is not None
        step, products = max(1, PIECE_BYTES // (8 * len(self._parts))), Products.none(len(self._parts))
        for start in range(0, len(self.local), step):
            pieces = torch.stack([part[start : start + step].double() for part in self._parts])
            products += Products.of(pieces, self.local[start : start + step])
        solved = effective_weights(products)
        return bool(solved.residual <= max(1e-6, self.noise / norm if norm else 0.0))

    def _by_any_weights(self, blank: Meaning) -> Meaning:
        """Weights that have no name, of ranks, of ranks now and before, or of samples; or nothing that explains it."""
        found = self._unnamed(blank) if self.control.rank == 0 else None
        return tell(self.control, found)

    def _unnamed(self, blank: Meaning) -> Meaning:
        if blank.residual * self.length <= self.enough:
            words = "ranks do not weigh what they should, in no way that has a name"
            left = blank.residual * self.length
            return replace(blank, verdict=WEIGHTING, cause="weights", words=words, advice=_WEIGHTS, left=left, fitting=1)
        assert self._of_ranks_now is not None
        late = effective_weights(self._of_ranks_now.products)
        if late.residual * self.distance <= self.enough:
            words = "gradients of the iteration before are part of it"
            left = late.residual * self.distance
            return replace(blank, verdict=STALE, cause="earlier", words=words, advice=_EARLIER, left=left, fitting=1)
        left = self._left_by_samples
        if left <= self.enough:
            words = "samples do not weigh what they should, in no way that has a name"
            return replace(blank, verdict=WEIGHTING, cause="weights", words=words, advice=_WEIGHTS, left=left, fitting=1)
        words = "no weights of ranks or samples, and no other function that was tried, make this gradient"
        return replace(blank, verdict=UNEXPLAINED, cause="unexplained", words=words, advice=_SEARCH)

    def _gram(self, name: str, vectors: Sequence[Tensor]) -> Gram:
        """Kept: on rank 0, the products; elsewhere, none."""
        held: list[Gram] = []

        def compute() -> Tensor:
            held.append(gram_of(self.control, vectors))
            return torch.cat([torch.tensor([*held[0].held], dtype=torch.float64), held[0].products.flatten()])

        kept = self.witness.kept(f"gram.{name}", compute)
        if held:
            return held[0]
        size = self.facts.size
        counts = [int(count) for count in kept[:size]]
        square = sum(counts) if self.control.rank == 0 else 0
        return Gram(counts, kept[size:].view(square, square))


_HARMLESS = 1e-3
"""Part of the gradient: a mistake that changes less is not counted as hidden."""
NONFINITE = "nonfinite"
_FINITE = "find the first layer or loss that is not finite; where the loss is scaled, lower the scale"
_ALONE = "a model whose samples influence each other (BatchNorm, dropout) must see them together"
_WEIGHTS = "compare the weights with those that they should be, beside this verdict"
_EARLIER = "look for a gradient that was not cleared, or for a buffer that is sent before it is filled"
_SEARCH = "compare the ranks' local gradients with their references, then the result with their sum"
