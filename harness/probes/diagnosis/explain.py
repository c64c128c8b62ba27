"""The verdict on a gradient: its meaning, looked for where rounding hides nothing, and what rounding did to it beside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.probes.control import Control
from harness.probes.diagnosis.floor import Local, Noise, noise_of
from harness.probes.diagnosis.ladder import SUM_ORDER, Ladder
from harness.probes.diagnosis.meaning import Meaning
from harness.probes.diagnosis.products import PIECE_BYTES, distance, dot
from harness.probes.diagnosis.search import NONFINITE, meaning_of
from harness.probes.diagnosis.unlike import meaning_of_unlike, unlike_ranks
from harness.probes.diagnosis.witness import Witness
from harness.schema.record import (
    CANNOT_TELL,
    CLEAN,
    IDENTICAL,
    NON_DETERMINISTIC,
    NOT_REDUCED,
    ORDER,
    PRECISION,
    RANKS_DISAGREE,
    ROUNDING,
    UNEXPLAINED,
    Diagnosis,
    Weight,
)

_WITHIN = 4.0
"""Floors that rounding may reach from float32 on: one is a root mean square, and right within a factor of about 2."""
_WITHIN_MEASURED = 2.0
"""The same below float32, where the floor is measured in the step's own precision. 200 right bfloat16 steps reached 1.3."""
_OF_ONE = 3.0
"""Bars that one parameter may reach: of many parameters one is far off by chance, and few numbers estimate its floor."""
_NONE = 1e-6
"""Part of the gradient: a parameter with less has none, as the bias of keys under softmax."""
_LIMIT = 0.02
"""A gradient is clean only where a factor of 1 + this on it would have been seen."""
_CLEAR = 64.0
"""Floors, scaled to float64, above which a float64 gradient is no matter of rounding."""


@dataclass(frozen=True)
class Seen:
    """What one rank saw of a step. Gradients are flat; all ranks have as many, of equal lengths."""

    value: Tensor
    """The result that is to be explained."""
    repeats: bool
    """Whether the same step leaves the same bits again."""
    local: Local
    sizes: Sequence[int]
    """Elements of each parameter."""
    coarsest: torch.dtype
    """Coarsest dtype in which a number of the step is rounded."""
    travels: torch.dtype
    """Coarsest dtype in which gradients are accumulated and sent."""
    exact: Tensor | None = None
    """The same step's result with all numbers in float64."""
    exact_local: Tensor | None = None
    """What this rank brought to that."""
    sent: torch.dtype | None = None
    """In which the float64 step still sends its gradients, where the aggregation insists on it."""
    lossy: bool = False
    """Whether the aggregation drops part of what it sends, by design."""
    reference: str = "the float64 reference"
    """Name of the gradient that the witness calls right."""
    names: Sequence[str] = ()
    """Names of the parameters; where given, each of them is held to its own floor."""


@dataclass(frozen=True)
class Explanation(Diagnosis):
    """A diagnosis, and what it rests on. Equal on all ranks, but for `noises`, `lengths` and `ladder`, and what the ladder
    proves, which rank 0 has."""

    weights: tuple[Weight, ...] = ()
    noises: Sequence[Noise] = ()
    """The whole gradient's, then each parameter's."""
    lengths: Sequence[float] = ()
    """|value - right|, likewise."""
    limit: float = math.nan
    """A factor of 1 + limit on the gradient, or a larger one, would have been seen; NaN where something is wrong."""
    ladder: Ladder | None = None

    @property
    def unexplained(self) -> bool:
        """True if nothing that was tried explains the gradient."""
        return self.verdict == UNEXPLAINED

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong but the finiteness of floats."""
        return self.verdict in CLEAN

    def __str__(self) -> str:
        advice = f"{self.advice[:1].upper()}{self.advice[1:]}"
        return f"{self.verdict.replace('_', ' ')} ({self.confidence}): {self.statement}. {advice}"


@dataclass(frozen=True)
class _Rounding:
    """|d| that rounding may make; on rank 0, told to all."""

    bound: float
    """The larger of what permutations show and what is probable: never below what rounding makes."""
    own: float
    """The floor in the step's own precision."""
    bar: float
    """Rounding stays below."""

    @classmethod
    def of(cls, noise: Noise, coarsest: torch.dtype) -> "_Rounding":
        if _below_float32(coarsest):
            return cls(noise.bound, noise.measured, _WITHIN_MEASURED * noise.measured)
        return cls(noise.bound, noise.bound, _WITHIN * max(noise.bound, noise.kernels))


def _below_float32(dtype: torch.dtype) -> bool:
    return dtype.itemsize < torch.float32.itemsize


@dataclass(frozen=True)
class _Distance:
    """On rank 0, told to all."""

    whole: float
    length: float
    bits: bool
    parts: tuple[float, ...] = ()
    lengths: tuple[float, ...] = ()
    """Norm of the reference, likewise."""


@dataclass(frozen=True)
class _Parameters:
    """Each parameter beside its own floor. Equal on all ranks."""

    furthest: int = -1
    """Place of the parameter that is most bars from the reference."""
    over: float = 0.0
    """Its distance over its bar; above 1, rounding does not explain it."""
    distance: float = 0.0
    """Relative to the parameter's own reference."""
    floor: float = 0.0
    """Its floor, relative to the same."""
    hidden: int = 0
    """Parameters whose whole gradient is within their bars: whether it is there, rounding hides."""
    first: int = -1
    """Place of the first of them."""
    share: float = 0.0
    """Norm of all of them, relative to the gradient."""


def explain(witness: Witness, seen: Seen) -> Explanation:
    """The verdict. All ranks call alike."""
    control, right = witness.control, witness.right()
    noises = noise_of(control, seen.local, seen.sizes, seen.coarsest, sent=seen.travels, right=right)
    rounding, kernels = _everywhere(control, noises, seen.coarsest)
    apart = _distance(control, right, seen)
    repeats = not control.any(not seen.repeats)
    meaning = _meaning(witness, seen, rounding)
    numbers = _Numbers(seen, rounding, kernels, apart, meaning, _by_parameter(control, seen, noises, apart))
    found = numbers.told(repeats) if meaning.verdict else numbers.clean(repeats)
    return replace(
        found,
        distance=_over(apart.whole, apart.length),
        floor=_over(rounding.own, apart.length),
        exact_distance=_over(meaning.distance, meaning.length) if _measured(seen, meaning) else math.nan,
        independent=meaning.independent,
        condition=meaning.condition,
        residual=meaning.residual,
        weights=meaning.weights,
        noises=noises,
        lengths=apart.parts,
    )


def _everywhere(control: Control, noises: Sequence[Noise], coarsest: torch.dtype) -> tuple[_Rounding, float]:
    """Rank 0's view of rounding, and of the kernels' part in it, on all ranks."""
    found = torch.zeros(4, dtype=torch.float64)
    if noises:
        own = _Rounding.of(noises[0], coarsest)
        found = torch.tensor([own.bound, own.own, own.bar, noises[0].kernels], dtype=torch.float64)
    control.meet()
    *rounding, kernels = control.broadcast(found).tolist()
    return _Rounding(*rounding), kernels


def _by_parameter(control: Control, seen: Seen, noises: Sequence[Noise], apart: _Distance) -> _Parameters:
    """Hold each parameter to its own floor, which has at least its share of the whole's."""
    if not seen.names:
        return _Parameters()
    found = torch.zeros(7, dtype=torch.float64)
    if control.rank == 0:
        whole, *parts = (_Rounding.of(noise, seen.coarsest) for noise in noises)
        shares = [math.sqrt(size / sum(seen.sizes)) for size in seen.sizes]
        bars = [_OF_ONE * max(own.bar, share * whole.bar) for own, share in zip(parts, shares, strict=True)]
        overs = [_over(away, bar) for away, bar in zip(apart.parts[1:], bars, strict=True)]
        worst = overs.index(max(overs))
        floor, length = max(parts[worst].own, shares[worst] * whole.own), apart.lengths[worst]
        hidden = [at for at, own in enumerate(apart.lengths) if _NONE * apart.length < own <= bars[at]]
        share = _over(math.hypot(*(apart.lengths[at] for at in hidden)), apart.length)
        numbers = (worst, overs[worst], _over(apart.parts[1 + worst], length), _over(floor, length))
        found = torch.tensor([*numbers, len(hidden), hidden[0] if hidden else -1, share], dtype=torch.float64)
    control.meet()
    furthest, over, distance, floor, count, first, share = control.broadcast(found).tolist()
    return _Parameters(int(furthest), over, distance, floor, int(count), int(first), share)


def _measured(seen: Seen, meaning: Meaning) -> bool:
    """Whether the meaning has been looked for by a distance, in float64."""
    return seen.exact is not None and meaning.verdict not in (NOT_REDUCED, RANKS_DISAGREE)


def with_ladder(found: Explanation, ladder: Ladder | None) -> Explanation:
    """With what the replay proves: that the sum was made of what the ranks brought, in that order. On rank 0."""
    if ladder is None:
        return found
    found = replace(
        found, ladder=ladder, replayed=ladder.replayed, proved=ladder.proved, summation_orders=" | ".join(ladder.orders)
    )
    if not ladder.proved or found.verdict != ROUNDING:
        return found
    if ladder.share(SUM_ORDER) > _MOST:
        words = (
            f"{ladder.share(SUM_ORDER):.0%} of the distance is the order of summation over ranks, replayed bit for bit: proved"
        )
        return replace(found, verdict=ORDER, cause=ORDER, statement=f"{found.statement}; {words}", confidence="proved")
    return replace(found, statement=f"{found.statement}; the sum over ranks is replayed bit for bit")


_MOST = 0.5
"""Of the distance, for a step to give it its name."""


def _meaning(witness: Witness, seen: Seen, rounding: _Rounding) -> Meaning:
    """Looked for in float64 where there is such a run: rounding shrinks there by 2^29, and what is not rounding stays."""
    if seen.exact is None:
        return meaning_of(witness, seen.value, rounding.bar, seen.exact_local)
    unit = torch.finfo(seen.sent or torch.float64).eps / torch.finfo(seen.coarsest).eps
    noise = (_WITHIN if seen.sent else _CLEAR) * rounding.bound * unit
    found = meaning_of(witness, seen.exact, noise, seen.exact_local)
    unlike = unlike_ranks(witness.control, seen.value)
    if any(unlike) and not found.verdict:  # in the case's own precision alone
        return meaning_of_unlike(witness, seen.value, rounding.bar, unlike)
    if found.verdict == UNEXPLAINED and found.cause != NONFINITE and seen.lossy:
        return replace(found, verdict=PRECISION, cause="lossy", words=_LOSSY, advice=_SEND_ALL)
    return found


_LOSSY = "the aggregation drops part of what it sends, by design, in float64 too"
_SEND_ALL = "compare with a strategy that sends whole gradients where their bits matter"


@dataclass(frozen=True)
class _Numbers:
    """What the verdict rests on."""

    seen: Seen
    rounding: _Rounding
    kernels: float
    apart: _Distance
    meaning: Meaning
    parameters: _Parameters

    def told(self, repeats: bool) -> Explanation:
        """Of a gradient that is not what it should be."""
        meaning = self.meaning
        if meaning.verdict == UNEXPLAINED and not repeats:
            return _clean(NON_DETERMINISTIC, f"{_OTHER_BITS}; and {meaning.words}", _DETERMINISTIC, "proved")
        found = _found(meaning.verdict, meaning.cause, meaning.words, meaning.advice, self._confidence(), meaning.explained)
        return replace(
            found,
            factor=meaning.factor,
            rank=meaning.rank,
            sample=meaning.sample,
        )

    def _confidence(self) -> str:
        meaning = self.meaning
        if meaning.verdict == RANKS_DISAGREE:
            return "proved"
        sure = self.seen.exact is not None and meaning.explained > _ALL and meaning.verdict != UNEXPLAINED
        return "ambiguous" if meaning.fitting > 1 else "certain" if sure else "likely"

    def clean(self, repeats: bool) -> Explanation:
        """Of a gradient whose weights are right, or that is right in float64."""
        relative = _over(self.apart.whole, self.apart.length)
        if not repeats:
            return _clean(NON_DETERMINISTIC, _OTHER_BITS, _DETERMINISTIC, "proved")
        if self.apart.bits:
            found = _clean(IDENTICAL, f"every bit is that of {self.seen.reference}, rounded once", "", "proved")
            return replace(found, limit=torch.finfo(self.seen.value.dtype).eps)
        if not math.isfinite(self.apart.whole):
            return _found(UNEXPLAINED, NONFINITE, _INFINITE, _LOWER, "likely", 0.0)
        if self.apart.whole > self.rounding.bar and self.seen.exact is not None:
            words = (
                f"{relative:.2g} from {self.seen.reference}, which no rounding of its own kernels makes; in float64 it is right"
            )
            return _found(UNEXPLAINED, "own_precision", words, _KERNEL, "likely", 0.0)
        if self.parameters.over > 1:
            return self._of_one_parameter()
        return self._rounded(relative) if self.seen.exact is not None else self._limited(relative)

    def _of_one_parameter(self) -> Explanation:
        """The verdict on a gradient that is right as a whole, and wrong in one small part."""
        name, one = self.seen.names[self.parameters.furthest], self.parameters
        words = f"{name} is {one.distance:.2g} from {self.seen.reference}, where rounding makes {one.floor:.2g} of it"
        return _found(UNEXPLAINED, PARAMETER, f"{words}; the gradient as a whole is within its floor", _LOOK, "likely", 0.0)

    def _limited(self, relative: float) -> Explanation:
        """The verdict where no float64 rerun is known: clean only where a mistake would have been seen."""
        limit = _over(self.rounding.bar + self.rounding.own, self.apart.length)
        found = replace(self._rounded(relative), limit=limit)
        missing = self._missing()
        if limit < _LIMIT and not self.meaning.also and self.parameters.share < _LIMIT:
            unseen = f"; {missing} would not" if missing else ""
            return replace(found, statement=f"{found.statement}; {seen_from(limit)}{unseen}") if limit > _TINY else found
        factor = f"a factor below {1 + limit:.3g} on it" if limit >= _LIMIT else ""
        hidden = self.meaning.also or factor or missing
        floor = _over(self.rounding.own, self.apart.length)
        apart = f"{relative:.2g} from {self.seen.reference}, where rounding makes {floor:.2g}"
        words = f"{apart}, which would hide this mistake: {hidden}"
        advice = SHARPER if _below_float32(self.seen.coarsest) else _ELSEWHERE
        return replace(_clean(CANNOT_TELL, words, advice, "likely"), limit=limit)

    def _missing(self) -> str:
        """Name the parameters that may lack their gradient without being seen."""
        if not self.parameters.hidden:
            return ""
        more = f" or of {self.parameters.hidden - 1} other parameters" if self.parameters.hidden > 1 else ""
        return f"a missing gradient of {self.seen.names[self.parameters.first]}{more}"

    def _rounded(self, relative: float) -> Explanation:
        """Of one that is as far off as rounding may put it."""
        if _below_float32(self.seen.coarsest):
            name = str(self.seen.coarsest).removeprefix("torch.")
            words = f"numbers are rounded to {name} on the way: {relative:.2g} from {self.seen.reference}"
            return _clean(PRECISION, f"{words}{self._shrinks()}", _FINER, "certain" if self._shrinks() else "likely")
        if self.apart.whole <= _WITHIN * self.rounding.bound:
            return _clean(
                ROUNDING,
                f"{relative:.2g} from {self.seen.reference}, within the noise floor{self._shrinks()}",
                _LEAVE,
                "likely",
            )
        floor, kernels = (_over(noise, self.apart.length) for noise in (self.rounding.bound, self.kernels))
        words = (
            f"{relative:.2g} from {self.seen.reference}, above the noise floor of {floor:.2g}; kernels alone make {kernels:.2g}"
        )
        return _clean(PRECISION, f"{words}{self._shrinks()}", _LESS, "likely")

    def _shrinks(self) -> str:
        exact = self.meaning.distance
        if self.seen.exact is None or self.seen.value.dtype == torch.float64 or not math.isfinite(self.apart.whole):
            return ""
        if not exact:
            return "; in float64 nothing is left of it"
        return f"; in float64 it shrinks by 2^{math.log2(self.apart.whole / exact):.0f}"


def seen_from(limit: float) -> str:
    """The smallest factor that would have been seen, in words."""
    return f"a factor of {1 + limit:.4f} or more on it would have been seen"


_ALL = 1 - 1e-9
"""Of |d|^2: what is left of d is below 3e-5 of it."""
_OTHER_BITS = "the same step leaves other bits again"
_INFINITE = "the gradient is not finite; in float64 it is right"
_LOWER = "look at the range of the dtype that it is computed or sent in, and at the scale of the loss"
_KERNEL = "look for a race or a kernel that goes wrong in this precision alone: run it alone, and under another strategy"
_DETERMINISTIC = "where bits matter, take torch.use_deterministic_algorithms(True) and an aggregation that sums in one order"
_FINER = "nothing is wrong; where it is too far, compute or send in a finer dtype"
PARAMETER = "parameter"
_LOOK = "look at what this parameter alone passes through: its reduction over ranks, its hooks, where its gradient is cut off"
_ELSEWHERE = "the gradient nearly cancels here: audit it at other parameters, as those before training, or with another batch"
SHARPER = "audit the step in float32, or with more samples a rank: its weights do not depend on the precision"
_TINY = 1e-4
"""Limits below are not worth a word."""
_LEAVE = "nothing to do: this is what floats do"
_LESS = "numbers cancel (a trained model), or kernels compute in less precision than their dtype has: look at TF32, fast math"


def _clean(verdict: str, words: str, advice: str, confidence: str) -> Explanation:
    return _found(verdict, verdict, words, advice or _LEAVE, confidence, 1.0)


def _found(verdict: str, cause: str, words: str, advice: str, confidence: str, explained: float) -> Explanation:
    """The distances are filled in by `explain`, and the case by who knows of cases."""
    return Explanation("", verdict, cause, words, advice, confidence, explained, math.nan, math.nan, math.nan)


def _distance(control: Control, right: Tensor | None, seen: Seen) -> _Distance:
    """Of rank 0's value, told to all."""
    found = torch.zeros(3, dtype=torch.float64)
    parts, lengths = list[float](), list[float]()
    if control.rank == 0:
        assert right is not None
        pairs = list(zip(seen.value.split(list(seen.sizes)), right.split(list(seen.sizes)), strict=True))
        parts, lengths = [distance(*pair) for pair in pairs], [dot(expected, expected) ** 0.5 for _, expected in pairs]
        bits = all(_rounded_alike(*pair) for pair in pairs)
        found = torch.tensor([math.hypot(*parts), dot(right, right) ** 0.5, float(bits)], dtype=torch.float64)
    control.meet()
    whole, length, same = control.broadcast(found).tolist()
    return _Distance(whole, length, bool(same), (whole, *parts), tuple(lengths))


def _rounded_alike(one: Tensor, other: Tensor) -> bool:
    step = PIECE_BYTES // 8
    return all(torch.equal(a, b.to(a.dtype)) for a, b in zip(one.split(step), other.split(step), strict=True))


def _over(length: float, whole: float) -> float:
    return length / whole if whole else (math.inf if length else 0.0)
