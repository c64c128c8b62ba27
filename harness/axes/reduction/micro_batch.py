"""Gradient accumulation over micro-batches."""

from harness.axes.reduction.base import Interleaved, LocalWork


class MicroBatchReduction(Interleaved):
    """Backward of the mean of each micro-batch of `size` samples, weighted by the micro-batch's share of n."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size={size}: expected at least 1 sample a micro-batch")
        self._size = size

    def splits(self, samples: int) -> bool:
        return samples > self._size

    def local_gradient(self, work: LocalWork) -> None:
        parts = [part for part in work.parts(self._size) if sum(work.terms[part])]  # the mean over no terms is NaN
        for part in parts:
            samples, share = work.batch[part], sum(work.terms[part]) / work.denominator
            with work.each_pass(last=part is parts[-1]):
                (work.criterion.mean(work.model(*samples.inputs), samples.target) * share).backward()
