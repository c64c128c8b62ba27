"""Operation by operation."""

from harness.axes.execution.base import Execution


class EagerExecution(Execution):
    """The module as it is."""
