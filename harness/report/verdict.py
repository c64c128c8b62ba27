"""Two sides of launches held against each other: the ratio, its interval, and what may be said of it."""

from dataclasses import dataclass, replace
from functools import cache
from math import exp, inf, log, nan, sqrt

import numpy as np

from harness.report.statistics import CONFIDENCE, Floats, student_quantile

MORE, LESS, SAME, UNCLEAR, EQUAL = "more", "less", "same", "unclear", "equal"
"""Verdicts on the new side, of whatever is compared."""
MARGIN = 0.10
"""Ratios up to 1.1, and down to 1/1.1, count as the same, unless something else is asked for."""
_EQUIVALENT = 2 * CONFIDENCE - 1
"""Confidence of the interval that has to lie inside the margin: two one-sided tests of the same strictness."""
_FEWEST_AA = 4


@dataclass(frozen=True)
class Ratio:
    """What the launches of two sides say of one quantity of one case."""

    base: float
    """Median of the launches."""
    new: float
    base_launches: int
    new_launches: int
    ratio: float
    """new over base: the median over all pairs of launches."""
    low: float
    """Of the interval, of 95 % at least; NaN where there are too few launches for one."""
    high: float
    detectable: float
    """Least slow-down (or growth), as a share, that launches as scattered as these could show; NaN where none."""
    verdict: str
    """MORE, LESS, SAME or UNCLEAR; of a figure also EQUAL."""


def judge(base: Floats, new: Floats, *, margin: float = MARGIN, again: Floats | None = None) -> Ratio:
    """Hold two sides against each other, one number of at least 0 a launch. The launches of a side are not paired.

    MORE or LESS: the interval of the ratio does not hold 1. SAME: it does, and the interval of 90 % lies within the margin, so
    that a larger ratio is refused at 5 % on either side (two one-sided tests: Schuirmann 1987). Else UNCLEAR, as always where
    the launches are too few for an interval. There `again`, launches of one configuration (A/A), can still show a difference:
    one that lies beyond what two sides of as many equal launches differ by.
    """
    pairs = np.sort(_ratios(base, new).ravel())
    ratio, (low, high) = _middle(pairs), interval(base, new, CONFIDENCE)
    detectable = _share(ratio, low)
    if np.isnan(low) and again is not None and len(again) >= _FEWEST_AA:
        reach = _reach(again, len(base), len(new))
        low, high, detectable = ratio / reach, ratio * reach, reach - 1
        verdict = _direction(low, high) or UNCLEAR
    else:
        verdict = _verdict(base, new, (low, high), margin)
    medians = float(np.median(base)), float(np.median(new))
    return Ratio(*medians, len(base), len(new), ratio, low, high, detectable, verdict)


def judge_exact(base: Floats, new: Floats, *, margin: float = MARGIN) -> Ratio:
    """As `judge`, of a quantity that launches repeat to the last bit: then one launch is enough, and the ratio has no
    interval."""
    if len({*base.tolist()}) > 1 or len({*new.tolist()}) > 1:
        return judge(base, new, margin=margin)
    ratio = float(_ratios(base[:1], new[:1])[0, 0])
    return Ratio(float(base[0]), float(new[0]), len(base), len(new), ratio, ratio, ratio, 0.0, _direction(ratio, ratio) or SAME)


def judge_figure(base: Floats, new: Floats, *, margin: float = MARGIN) -> Ratio:
    """Judge a number of any sign, such as a loss, like `judge_exact`. EQUAL: all launches of both sides have the same bits."""
    if len(np.unique(base)) == len(np.unique(new)) == 1:
        equal = np.array_equal(base[:1], new[:1], equal_nan=True)
        verdict = EQUAL if equal else LESS if new[0] < base[0] else MORE  # NaN is more than any number
        return replace(judge_exact(base[:1], new[:1]), base_launches=len(base), new_launches=len(new), verdict=verdict)
    if (base > 0).all() and (new > 0).all():
        return judge(base, new, margin=margin)
    medians = float(np.median(base)), float(np.median(new))
    return Ratio(*medians, len(base), len(new), *_NO_INTERVAL, UNCLEAR)


_NO_INTERVAL = (nan, nan, nan, nan)
"""Ratio, its bounds, and what would show."""


def interval(base: Floats, new: Floats, confidence: float) -> tuple[float, float]:
    """Of the ratio new over base, of at least the confidence whatever the distribution of the launches; NaN where none is.

    Two of the ordered ratios of all pairs of launches, counted off by the distribution of Mann and Whitney's U, as Hodges and
    Lehmann's estimate has it (Hollander, Wolfe and Chicken 2014, Nonparametric Statistical Methods, section 4.3; ratios for
    differences). It is exact where equal sides could have been exchanged launch by launch; a drift that alternating sides
    share makes it too wide.
    """
    place = _place(len(base), len(new), (1 - confidence) / 2)
    if not place:
        return nan, nan
    pairs = np.sort(_ratios(base, new).ravel())
    return float(pairs[place - 1]), float(pairs[-place])


def fewest_launches() -> int:
    """Launches that each of two equal sides needs for an interval."""
    return next(count for count in range(2, 100) if _place(count, count, (1 - CONFIDENCE) / 2))


def _verdict(base: Floats, new: Floats, bounds: tuple[float, float], margin: float) -> str:
    if np.isnan(bounds[0]):
        return UNCLEAR
    direction = _direction(*bounds)
    if direction:
        return direction
    low, high = interval(base, new, _EQUIVALENT)
    return SAME if 1 / (1 + margin) <= low and high <= 1 + margin else UNCLEAR


def _direction(low: float, high: float) -> str:
    """Empty where the interval holds 1."""
    return MORE if low > 1 else LESS if high < 1 else ""


def _reach(again: Floats, base: int, new: int) -> float:
    """The ratio that the means of so many equal launches stay below, on a log scale: Student's prediction interval.

    Never less than the largest ratio that two of the A/A launches have shown.
    """
    logs = np.log(again)
    spread = float(logs.std(ddof=1)) * sqrt(1 / base + 1 / new)
    return exp(max(student_quantile(len(again), CONFIDENCE) * spread, float(np.ptp(logs))))


def _ratios(base: Floats, new: Floats) -> Floats:
    """[base, new]: every launch of one side over every launch of the other. 0 over 0 is 1; NaN is more than any number."""
    above, below = np.where(np.isnan(new), inf, new)[None, :], np.where(np.isnan(base), inf, base)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(above == below, 1.0, above / below)


def _middle(ordered: Floats) -> float:
    """The median, geometric where it lies between two, so that exchanged sides have the inverse ratio."""
    lower, upper = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    return exp((log(lower) + log(upper)) / 2) if 0 < lower < upper < inf else upper


def _share(ratio: float, low: float) -> float:
    return ratio / low - 1 if low > 0 and ratio < inf else nan


@cache
def _place(base: int, new: int, tail: float) -> int:
    """The largest k for which U is below k with a chance of `tail` at most; 0 where even 0 is likelier."""
    return int(np.searchsorted(np.cumsum(_chances(base, new)), tail * (1 + 1e-9), side="right"))


def _chances(base: int, new: int) -> Floats:
    """The distribution of U, [base * new + 1], where the sides are equal: a Gaussian binomial coefficient, made step by
    step."""
    chances = np.zeros(base * new + 1)
    chances[0] = 1.0
    for step in range(1, base + 1):
        chances[new + step :] -= chances[: -(new + step)].copy() if new + step < len(chances) else 0.0
        for start in range(step):
            chances[start::step] = np.cumsum(chances[start::step])
        chances *= step / (new + step)
    return chances
