"""Gradients travel in their own dtype."""

from harness.axes.communication.base import Communication


class SameCommunication(Communication):
    """No cast."""
