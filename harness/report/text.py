"""Numbers for a person: sensible digits, and an exact zero told from a tiny number."""

import math

from harness.schema.text import plain


def number(value: float) -> str:
    """Two digits after the first; whole numbers whole, and an exact zero `0`."""
    if value == 0:
        return "0"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.2e}" if abs(value) < 1e-2 or abs(value) >= 1e4 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """Three digits, in ms, never in powers of ten."""
    value = seconds * 1e3
    if value == 0 or not math.isfinite(value):
        return number(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def mebibytes(value: float) -> str:
    """In MiB; tenths below 100."""
    size = value / 2**20
    return f"{size:.0f}" if abs(size) >= 100 else f"{size:.1f}"


def yes(value: bool) -> str:
    """yes or no."""
    return "yes" if value else "no"


def picture_text(text: str) -> str:
    """Text for a picture, with `$` escaped: matplotlib would read it as mathematics."""
    return plain(text).replace("$", r"\$")
