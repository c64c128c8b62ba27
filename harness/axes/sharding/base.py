"""Sharding: how the global batch is cut over the ranks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from harness.schema.context import Option


class Sharding(Option, ABC):
    """Cuts the samples of a batch into one part a rank."""

    @abstractmethod
    def shards(self, terms: Sequence[float], world_size: int) -> list[list[int]]:
        """The indices of each rank's samples; `terms` is what each sample counts. Every sample belongs to one rank."""
