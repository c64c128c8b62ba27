"""No fault."""

from harness.axes.fault.base import Fault


class NoneFault(Fault):
    """Everything as it should be."""

    planted = False
