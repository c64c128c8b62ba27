"""No explicit waiting."""

from harness.axes.sync.base import Sync


class NoneSync(Sync):
    """Nobody waits but where the collective itself does."""
