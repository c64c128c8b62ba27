"""Witness: what must be told of a step, of whatever making, before its gradient can be explained."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from harness.probes.control import Control
from harness.probes.diagnosis.facts import Facts


class Witness(Protocol):
    """One rank's view of a step. Gradients are flat, [elements], parameter after parameter; all ranks call alike.

    `control` says who is summed with whom: where nothing is summed over ranks, a rank is a world of one. Gradients that need no
    rank beside this one may be mapped from files.
    """

    @property
    def control(self) -> Control: ...

    @property
    def facts(self) -> Facts: ...

    def right(self) -> Tensor | None:
        """On rank 0: the float64 gradient of the whole batch, every term weighing the same. None elsewhere."""

    def summed(self, lag: int = 0) -> Tensor:
        """float64 gradient of the sum of this rank's losses."""

    def samples(self) -> Sequence[Tensor]:
        """float64 gradient of each of this rank's losses, in the batch that they are in. All of them together are `summed`."""

    def without(self, sample: int) -> Tensor:
        """As `summed`, of this rank's batch without one sample."""

    def apart(self) -> Tensor:
        """As `summed`, every sample in a batch of its own."""

    def kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """What is computed once for all steps on this batch and these ranks."""

    def blank(self, elements: int) -> Tensor:
        """A float64 vector to be written to, until the next one is asked for; it need not lie in memory."""

    def sample_limit(self) -> int:
        """How many samples of all ranks may have gradients of their own."""
