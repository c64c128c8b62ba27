"""A division by the world size too few."""

from harness.axes.fault.base import Fault, Share, Situation


class MissingDivisionFault(Fault):
    """The sum over ranks is taken for their mean; where one denominator is global, it is averaged over ranks, not summed."""

    across_ranks = True
    in_division = True

    def expected(self, situation: Situation) -> list[Share]:
        return [share.scaled(situation.world_size) for share in situation.right]

    def denominator(self, denominator: float, divisor: int, world_size: int) -> float:
        return denominator / world_size if divisor == 1 else denominator

    def divisor(self, divisor: int, world_size: int) -> int:
        return 1
