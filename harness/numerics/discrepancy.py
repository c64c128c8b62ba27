"""How far two gradients are from each other: every metric from one read of both.

The sums are kept in float64. Of the three inner products that two vectors have, those with the difference d = value - against
are summed, <d,d>, <d,against> and <against,against>: what is close to zero is then never the difference of two large numbers,
and 1 - cosine or the residual after scaling stay right down to 1e-16.
"""

import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.numerics import fused

CHUNK = 1 << 15
"""Elements a pass of torch operations takes at a time: its temporaries, a dozen of 256 KiB, stay in the cache."""
COMPILE_FROM = 1 << 22
"""Elements from which the compiled pass (harness.numerics.fused) pays for its start."""

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Discrepancy:
    """Sums over the elements of value and against, d being value - against. Those of two parts add up with `+`."""

    count: int = 0
    max_abs: float = 0.0
    """max |d|"""
    dd: float = 0.0
    """<d, d>"""
    d_against: float = 0.0
    """<d, against>"""
    against_against: float = 0.0
    """<against, against>"""
    max_ulp: float = 0.0
    """Largest distance in units in the last place of value's dtype, against rounded to it; +0 and -0 are 0 apart."""
    mismatched: int = 0
    """Elements whose bits differ, against rounded to value's dtype."""
    nonfinite: int = 0
    """Elements of value that are NaN or Inf."""

    def __add__(self, other: "Discrepancy") -> "Discrepancy":
        return Discrepancy(
            count=self.count + other.count,
            max_abs=_nan_max(self.max_abs, other.max_abs),
            dd=self.dd + other.dd,
            d_against=self.d_against + other.d_against,
            against_against=self.against_against + other.against_against,
            max_ulp=max(self.max_ulp, other.max_ulp),
            mismatched=self.mismatched + other.mismatched,
            nonfinite=self.nonfinite + other.nonfinite,
        )

    @property
    def value_value(self) -> float:
        """<value, value>; NaN where value has one, else inf where it has that, as far as `against` is finite."""
        if not math.isfinite(self.dd):  # inf and -inf among the sums would make NaN of it
            return self.dd if math.isfinite(self.against_against) else math.nan
        return max(self.against_against + 2 * self.d_against + self.dd, 0.0)

    @property
    def value_l2(self) -> float:
        """||value||"""
        return math.sqrt(self.value_value)

    @property
    def l2(self) -> float:
        """||d||"""
        return math.sqrt(self.dd)

    @property
    def against_l2(self) -> float:
        """||against||"""
        return math.sqrt(self.against_against)

    @property
    def relative_l2(self) -> float:
        """||d|| / ||against||; 0 when both are zero, inf when only against is."""
        return _ratio(self.l2, self.against_l2)

    @property
    def cosine(self) -> float:
        """<value, against> / (||value|| ||against||), by way of 1 - cosine; NaN when one of them is zero and the other not."""
        lengths = math.sqrt(self.value_value) * self.against_l2
        if lengths == 0:
            return 1.0 if self.dd == 0 else math.nan
        return 1.0 - self.one_minus_cosine

    @property
    def one_minus_cosine(self) -> float:
        """(||d||^2 - (||value|| - ||against||)^2) / (2 ||value|| ||against||), free of cancellation."""
        value_l2 = math.sqrt(self.value_value)
        if value_l2 * self.against_l2 == 0:
            return 0.0 if self.dd == 0 else math.nan
        gap = (2 * self.d_against + self.dd) / (value_l2 + self.against_l2)
        return max(self.dd - gap * gap, 0.0) / (2 * value_l2 * self.against_l2)

    @property
    def scale(self) -> float:
        """The alpha for which value is closest to alpha * against; NaN when against is zero."""
        if self.against_against == 0:
            return math.nan
        return 1.0 + self.d_against / self.against_against

    @property
    def scaled_residual(self) -> float:
        """||value - scale * against|| / ||against||: what no factor explains."""
        if self.against_against == 0:
            return _ratio(self.l2, 0.0)
        along = self.d_against * self.d_against / self.against_against
        return math.sqrt(max(self.dd - along, 0.0) / self.against_against) if math.isfinite(self.dd) else math.nan

    @property
    def mismatched_fraction(self) -> float:
        """Share of elements whose bits differ."""
        return self.mismatched / self.count if self.count else 0.0

    @property
    def bitwise_equal(self) -> bool:
        """No bit differs."""
        return self.mismatched == 0

    def metrics(self) -> tuple[float, ...]:
        """The columns that harness.schema.record.METRICS names, in their order."""
        return (
            self.max_abs,
            self.l2,
            self.against_l2,
            self.relative_l2,
            self.cosine,
            self.scale,
            self.scaled_residual,
            self.max_ulp,
            self.mismatched_fraction,
            float(self.bitwise_equal),
            float(self.nonfinite),
        )


def compare_all(
    value: Iterable[tuple[str, Tensor]], against: Iterable[tuple[str, Tensor]]
) -> tuple[Discrepancy, dict[str, Discrepancy]]:
    """Of (name, tensor) pairs in equal order: the whole, which is the sum of its parts, and the parts, from one read."""
    parts = {name: compare(one, other) for (name, one), (_, other) in zip(value, against, strict=True)}
    return sum(parts.values(), Discrepancy()), parts


def compare(value: Tensor, against: Tensor) -> Discrepancy:
    """Hold `value` against `against`: any equal shapes and floating dtypes, on one device. Reads each of them once.

    Temporaries stay below 64 MiB whatever the size. Raises ValueError for unequal shapes.
    """
    if value.shape != against.shape:
        raise ValueError(f"cannot compare shapes {tuple(value.shape)} and {tuple(against.shape)}")
    value, against = value.detach().reshape(-1), against.detach().reshape(-1)
    compiled = value.numel() >= COMPILE_FROM and fused.serves(value, against)
    found = Discrepancy(value.numel(), *fused.sums(value, against)) if compiled else _compare_in_chunks(value, against)
    if math.isfinite(found.dd):  # then every element of value is finite
        return found
    return replace(found, nonfinite=sum(int((~torch.isfinite(part)).sum()) for part in value.split(CHUNK)))


def _compare_in_chunks(value: Tensor, against: Tensor) -> Discrepancy:
    if value.numel() == 0:
        return Discrepancy()
    chunks = zip(value.split(CHUNK), against.split(CHUNK), strict=True)
    return functools.reduce(operator.add, (_compare_chunk(*chunk) for chunk in chunks))


def _compare_chunk(value: Tensor, against: Tensor) -> Discrepancy:
    y = against.double()
    d = value.double() - y
    max_abs, dd, d_against, against_against = torch.stack([d.abs().amax(), d @ d, d @ y, y @ y]).tolist()
    found = Discrepancy(value.numel(), max_abs, dd, d_against, against_against)
    bits, rounded = _bits(value), _bits(against.to(value.dtype))
    if torch.equal(bits, rounded):
        return found
    return replace(found, max_ulp=_max_ulp(bits, rounded), mismatched=int((bits != rounded).sum()))


def _max_ulp(bits: Tensor, others: Tensor) -> float:
    """Distance on the line of representable numbers; +0 and -0 are one point of it."""
    x, y = _ordered(bits), _ordered(others)
    if bits.element_size() < 8:
        return float((x.double() - y.double()).abs().amax())  # exact
    apart = (x.double() - y.double()).abs()  # where the signs differ int64 overflows, and exactness is of no use
    return float(torch.where((x < 0) == (y < 0), (x - y).abs().double(), apart).amax())


def _ordered(bits: Tensor) -> Tensor:
    """Integers in the order of the floats that they are the bits of."""
    return torch.where(bits < 0, torch.iinfo(bits.dtype).min - bits, bits)


def _bits(x: Tensor) -> Tensor:
    return x.view(_INTEGERS[x.element_size()])


def _ratio(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return 0.0 if numerator == 0 else math.nan if math.isnan(numerator) else math.inf
    return numerator / denominator


def _nan_max(x: float, y: float) -> float:
    return math.nan if math.isnan(x) or math.isnan(y) else max(x, y)
