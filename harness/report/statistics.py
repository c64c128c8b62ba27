"""Statistics of a case's times, from raw samples. Nothing is removed; what is odd is counted and flagged."""

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of every interval."""
RESAMPLES = 1000
_FENCE = 1.5
"""Tukey's: so many interquartile ranges outside of the quartiles lies an outlier."""
_FEWEST_FOR_TREND = 6
"""With fewer values no order is significant."""
_TREND_Z = 2.576
"""Of the Mann-Kendall test, two-sided at 1 %."""
_TREND = 0.1
"""Least change from the first iteration to the last, of the median, that is called a trend."""
_MODE = 0.4
"""Least prominence of a second mode, to the height of the first, twice over: Gregg's 2.4, less the 2 of a single mode."""
_FEWEST_FOR_MODES = 30
_FEWEST_PARTS, _MOST_PARTS = 10, 500
"""Of a series whose trend is looked for."""
_GRID = 1024
"""Bins of a density."""


@dataclass(frozen=True)
class Summary:
    """One phase of one case over all its iterations, in seconds where nothing else is said."""

    median: float
    """With several launches, the median of the launches' medians."""
    low: float
    """Lower end of the 95 % bootstrap interval of the median; NaN, as `high`, where no bootstrap sample has a number."""
    high: float
    iqr: float
    p95: float
    p99: float
    min: float
    count: int
    """Iterations, of all launches."""
    launches: int
    outliers: int
    """Iterations outside of Tukey's fences, of their own launch."""
    trend: float
    """Change from the first iteration to the last, as a share of the median; 0 where there is none to speak of."""
    two_modes: bool
    """Whether most launches have two modes."""


@dataclass(frozen=True)
class Blocks:
    """Which iterations belong together: of one launch, and in it of one visit. Iterations stand in the order in which they
    ran."""

    launch: NDArray[np.int64]
    """[iterations]"""
    visit: NDArray[np.int64]
    """[iterations]"""

    @property
    def launches(self) -> list[NDArray[np.int64]]:
        """The iterations of each launch."""
        return _groups(self.launch)

    def resampled(self) -> NDArray[np.int64]:
        """Indices [RESAMPLES, iterations] of one launch's bootstrap samples; the seed is fixed, so a report can be repeated.

        Whole visits are drawn where the launch visited the case several times. Otherwise circular blocks of the cube root of
        the iterations, since neighbours in time resemble each other (Politis and Romano 1992; Hall, Horowitz and Jing 1995).
        """
        random, visits = np.random.default_rng(0), _groups(self.visit)
        if len(visits) > 1:
            length = min(map(len, visits))
            drawn = random.integers(len(visits), size=(RESAMPLES, len(visits)))
            return np.stack([visit[:length] for visit in visits])[drawn].reshape(RESAMPLES, -1)
        count = len(self.visit)
        length = max(1, round(count ** (1 / 3)))
        starts = random.integers(count, size=(RESAMPLES, -(-count // length), 1))
        return ((starts + np.arange(length)) % count).reshape(RESAMPLES, -1)[:, :count]


def summarize(series: Floats, blocks: Blocks) -> list[Summary]:
    """`series` is [iterations, phases]; an iteration that has no number for a phase is NaN there."""
    launches = blocks.launches
    present = np.isfinite(series)
    return [
        _summary([values[own][there[own]] for own in launches if there[own].any()], bounds)
        for values, there, bounds in zip(series.T, present.T, _intervals(series, blocks), strict=True)
    ]


def _summary(launches: list[Floats], bounds: tuple[float, float]) -> Summary:
    pooled = np.concatenate(launches)
    first, third, p95, p99 = np.quantile(pooled, [0.25, 0.75, 0.95, 0.99])
    medians = np.array([np.median(launch) for launch in launches])
    return Summary(
        median=float(np.median(medians)),
        low=bounds[0],
        high=bounds[1],
        iqr=float(third - first),
        p95=float(p95),
        p99=float(p99),
        min=float(pooled.min()),
        count=len(pooled),
        launches=len(launches),
        outliers=sum(map(outliers, launches)),
        trend=float(np.median([trend(launch) for launch in launches])),
        two_modes=2 * sum(map(two_modes, launches)) > len(launches),
    )


def _intervals(series: Floats, blocks: Blocks) -> list[tuple[float, float]]:
    """Percentile bootstrap of the median of each column.

    Of several launches only the launches are drawn: what varies least inside them is not drawn again (Davison and Hinkley 1997,
    Bootstrap Methods and their Application, section 3.8).
    """
    launches = blocks.launches
    if len(launches) > 1:
        medians = np.stack([nan_median(series[own]) for own in launches])
        drawn = medians[np.random.default_rng(0).integers(len(medians), size=(RESAMPLES, len(medians)))]
    else:
        drawn = series[blocks.resampled()]
    resampled = nan_median(drawn.swapaxes(0, 1))
    return [_middle(column[np.isfinite(column)]) for column in resampled.T]


def _middle(medians: Floats) -> tuple[float, float]:
    """Ends of the middle 95 % of resampled medians; NaN without any: visits are cut to the shortest, which may have none."""
    if not len(medians):
        return nan, nan
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(low), float(high)


def nan_median(values: Floats) -> Floats:
    """Median over the first dimension, of what is there; NaN where nothing is."""
    if np.isfinite(values).all():
        return np.asarray(np.median(values, axis=0))
    ordered, counts = np.sort(values, axis=0), np.isfinite(values).sum(axis=0)  # NaN sorts last
    middle = [np.take_along_axis(ordered, np.maximum(place, 0)[None], 0)[0] for place in ((counts - 1) // 2, counts // 2)]
    return np.where(counts > 0, (middle[0] + middle[1]) / 2, np.nan)


def outliers(values: Floats) -> int:
    """How many lie outside of Tukey's fences (Tukey 1977, Exploratory Data Analysis)."""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = _FENCE * (third - first)
    return int(((values < first - reach) | (values > third + reach)).sum())


def trend(values: Floats) -> float:
    """Theil-Sen's slope over all iterations, as a share of the median (Sen 1968); 0 unless Mann-Kendall's test sees a trend.

    Both look at the medians of blocks, as long as those of the bootstrap: the test's variance (Mann 1945) is that of values
    that do not follow their neighbours.
    """
    middle, parts = float(np.median(values)), _block_medians(values)
    if middle == 0 or len(parts) < _FEWEST_FOR_TREND or not _rises_or_falls(parts):
        return 0.0
    from scipy.stats import theilslopes

    change = float(theilslopes(parts).slope) * len(parts) * (1 - 1 / len(values)) / middle
    return change if abs(change) >= _TREND else 0.0


def _block_medians(values: Floats) -> Floats:
    count = min(len(values), _MOST_PARTS, max(_FEWEST_PARTS, round(len(values) ** (2 / 3))))
    return np.array([np.median(part) for part in np.array_split(values, count)])


def _rises_or_falls(parts: Floats) -> bool:
    """Mann-Kendall's test: Kendall's tau between the parts and their order, by the normal distribution.

    The correction for continuity, which scipy's p-values lack, matters where parts are single iterations: without it 13 % of
    series of 10 are called a trend whose neighbours have a correlation of 0.6, with it 9 %.
    """
    from scipy.stats import kendalltau  # takes 0.7 s: not for commands that need no statistics of a series

    count = len(parts)
    score = kendalltau(np.arange(count), parts, method="asymptotic").statistic * count * (count - 1) / 2
    deviation = np.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    return bool(abs(score) - 1 > _TREND_Z * deviation)  # False for NaN: all parts are equal


def two_modes(values: Floats) -> bool:
    """True if the density of the values has a second hump: Gregg's mvalue over 2.4.

    The mvalue is the way up and down the density, over its height: 2 for a single hump (Gregg 2014, Frequency Trails: Modes and
    Modality). The density is a Gaussian kernel's, as wide as Silverman's rule of thumb says (Silverman 1986, equation 3.31), of
    counts in narrow bins (section 3.5 there). scipy.stats.gaussian_kde starts threads, and takes 7
    times as long on a machine whose cores are busy.
    """
    spread = _robust_spread(values) if len(values) >= _FEWEST_FOR_MODES else 0.0
    if spread == 0:
        return False
    from scipy.ndimage import gaussian_filter1d

    width = 0.9 * spread * len(values) ** -0.2
    centred = values - np.median(values)  # bins are as narrow as the spread, which rounding of the times themselves may be
    inside = centred[np.abs(centred) <= 10 * spread]
    counts, edges = np.histogram(inside, _GRID, (inside.min() - 4 * width, inside.max() + 4 * width))
    density = gaussian_filter1d(counts.astype(np.float64), width / (edges[1] - edges[0]), mode="constant")
    return bool(np.abs(np.diff(density)).sum() / density.max() > 2 + _MODE)


def _robust_spread(values: Floats) -> float:
    """Return the smaller of the standard deviation and that of a normal distribution with the same interquartile range."""
    low, high = np.quantile(values, [0.25, 0.75])
    return min(float(values.std()), float(high - low) / 1.34)


def student_quantile(units: int, confidence: float) -> float:
    """Return how many standard errors a two-sided interval of Student's t from so many values reaches to either side."""
    from scipy.special import stdtrit  # scipy.stats.t.ppf without the import of scipy.stats

    return float(stdtrit(units - 1, (1 + confidence) / 2))


def _groups(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
