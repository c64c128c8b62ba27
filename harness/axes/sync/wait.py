"""Collectives in flight."""

from harness.axes.sync.base import InCollectivesSync


class WaitSync(InCollectivesSync):
    """Every collective of the aggregation is started before the first is waited for (`async_op=True`, then `work.wait()`)."""

    asynchronous = True
