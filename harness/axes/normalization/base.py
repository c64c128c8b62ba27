"""Normalization: what the sum over ranks is divided by."""

from abc import ABC, abstractmethod

from harness.schema.context import Option


class Normalization(Option, ABC):
    """Two divisions make a mean of a sum over ranks: one of each rank's sum of losses, one of the sum of their gradients."""

    @abstractmethod
    def denominator(self, own: float, total: float) -> float:
        """What a rank's sum of losses is divided by; `own` is what its batch counts, `total` what all ranks' batches do."""

    @abstractmethod
    def divisor(self, world_size: int) -> int:
        """What the gradients summed over ranks are divided by."""
