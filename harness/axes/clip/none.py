"""No limit."""

from harness.axes.clip.base import Clip


class NoneClip(Clip):
    """Gradients as they are."""
