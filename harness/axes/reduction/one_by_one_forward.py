"""Each sample through the model alone."""

from harness.axes.reduction.base import EachSample, Interleaved, LocalWork


class OneByOneForwardReduction(EachSample, Interleaved):
    """Forward and backward of each sample as a batch of one, summed in `.grad`, then divided."""

    def splits(self, samples: int) -> bool:
        return samples > 1

    def local_gradient(self, work: LocalWork) -> None:
        rows = work.parts(1)
        for row in rows:
            sample = work.batch[row]
            with work.each_pass(last=row is rows[-1]):
                loss = work.criterion.sum(work.model(*sample.inputs), sample.target)
                work.note(loss, work.denominator)
                work.divided(loss).backward()
        work.divide_gradients()
