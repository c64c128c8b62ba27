"""Whatever torch does by default."""

from harness.axes.determinism.base import Determinism


class DefaultDeterminism(Determinism):
    """No flag is set."""
