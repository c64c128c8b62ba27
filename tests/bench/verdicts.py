"""How often a verdict is wrong, and what it finds: simulated launches, five a side, whose noise has any shape."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.report.verdict import MORE, UNCLEAR, judge

LAUNCHES, TRIALS, SPREAD = 5, 4000, 0.1
NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "heavy tails (t, 3 df)": lambda random, shape: random.standard_t(3, shape),
    "skewed (exponential)": lambda random, shape: random.exponential(size=shape),
    "two speeds": lambda random, shape: 0.2 * random.standard_normal(shape) + 3 * (random.random(shape) < 0.3),
}
"""Of the logarithm of a launch's median; scaled by SPREAD."""


@dataclass(frozen=True)
class Simulated:
    """Shares of the trials."""

    false_share: float
    """Of equal sides: called different."""
    half: float
    """Median half width of the interval of equal sides."""
    found_share: float
    """Of sides that differ by twice that: called slower."""
    same_share: float
    """Of equal sides with a tenth of the noise: called the same."""


def simulate(noise: str, *, trials: int = TRIALS) -> Simulated:
    """Draw launches, and judge them."""
    random = np.random.default_rng(0)
    base, new = np.exp(SPREAD * NOISES[noise](random, (2, trials, LAUNCHES)))
    equal = [judge(*sides) for sides in zip(base, new, strict=True)]
    half = float(np.median([(one.high - one.low) / 2 for one in equal]))
    slower = [judge(*sides).verdict for sides in zip(base, new * (1 + 2 * half), strict=True)]
    quiet = [judge(*sides).verdict for sides in zip(base**0.1, new**0.1, strict=True)]
    return Simulated(
        false_share=float(np.mean([one.verdict not in (UNCLEAR, "same") for one in equal])),
        half=half,
        found_share=slower.count(MORE) / trials,
        same_share=quiet.count("same") / trials,
    )


def main() -> None:
    print(f"verdicts on {TRIALS} simulated comparisons, {LAUNCHES} launches a side, {SPREAD:.0%} noise between launches:")
    for noise in NOISES:
        found = simulate(noise)
        print(
            f"  {noise:<22}  equal called different {found.false_share:.1%}; half of the interval {found.half:.0%}, twice that "
            f"called slower {found.found_share:.1%}; at a tenth of the noise, equal called the same {found.same_share:.1%}"
        )


if __name__ == "__main__":
    main()
