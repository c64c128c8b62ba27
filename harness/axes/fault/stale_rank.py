"""A rank that is one iteration behind."""

from torch import Tensor

from harness.axes.fault.base import Contribution, OneRankFault, Share, Situation


class StaleRankFault(OneRankFault):
    """`rank` sends its local gradient of the previous iteration, and keeps this one's for the next."""

    across_ranks = True
    batches = 2

    def expected(self, situation: Situation) -> list[Share]:
        if situation.iteration == 1:  # nothing earlier to send
            return situation.right
        earlier = situation.weigh(situation.terms[1])[self._rank]
        return self.changed(situation.right, Share(earlier.weights, lag=1))

    def contribution(self, rank: int) -> Contribution:
        if rank != self._rank:
            return super().contribution(rank)
        previous: list[Tensor] = []

        def send_previous(gradients: list[Tensor]) -> None:
            current = [gradient.clone() for gradient in gradients]
            for gradient, earlier in zip(gradients, previous, strict=False):
                gradient.copy_(earlier)
            previous[:] = current

        return send_previous
