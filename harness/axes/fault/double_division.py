"""A division by the world size too many."""

from harness.axes.fault.base import Fault, Share, Situation


class DoubleDivisionFault(Fault):
    """The mean over ranks is divided by W again; a sum over ranks with a global denominator as if it were to be a mean."""

    across_ranks = True

    def expected(self, situation: Situation) -> list[Share]:
        return [share.scaled(1 / situation.world_size) for share in situation.right]

    def divisor(self, divisor: int, world_size: int) -> int:
        return divisor * world_size
