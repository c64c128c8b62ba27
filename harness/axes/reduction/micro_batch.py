"""Gradient accumulation over micro-batches."""

from collections.abc import Sequence

from harness.axes.reduction.base import Interleaved, LocalWork, parts
from harness.schema.parameters import Count


class MicroBatchReduction(Interleaved):
    """Backward of the mean of each micro-batch of `size` samples, weighted by the micro-batch's share of n."""

    def __init__(self, size: Count) -> None:
        self._size = size

    def splits(self, samples: int) -> bool:
        return samples > self._size

    def passes(self, terms: Sequence[float]) -> list[range]:
        """Without those in which nothing counts: the mean over no terms is NaN."""
        return [part for part in parts(len(terms), self._size) if any(terms[sample] for sample in part)]

    def local_gradient(self, work: LocalWork) -> None:
        passes = [slice(part.start, part.stop) for part in self.passes(work.terms)]
        for part in passes:
            samples, share = work.batch[part], sum(work.terms[part]) / work.denominator
            with work.each_pass(last=part is passes[-1]):
                loss = work.criterion.mean(work.model(*samples.inputs), samples.target) * share
                work.note(loss, 1.0)
                loss.backward()
