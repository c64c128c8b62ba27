"""An asynchronous all-reduce whose result is read before it has been waited for."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.axes.fault.base import Fault, Share, Situation, Sum
from harness.tensors import collectives


class ReadBeforeWaitFault(Fault):
    """What all_reduce(async_op=True) has done so far is taken for its result, and the wait comes after.

    late: the other ranks join when rank 0 has read, so that rank 0 reads what it has alone, for certain; what the others read
    is a race. Without it every rank's read is one: own, summed, or partly summed.
    """

    across_ranks = True
    in_division = True
    leaves_own = True

    def __init__(self, late: bool = True) -> None:
        self._late = late

    def expected(self, situation: Situation) -> list[Share] | None:
        return situation.right if self._late else None

    def total(self, summed: Sum, gradients: list[Tensor], group: ProcessGroup, meet: Callable[[], None]) -> None:
        if self._late and gradients and gradients[0].is_cuda:
            for gradient in gradients:  # NCCL connects at the first use of an algorithm, and needs all ranks for it
                collectives.all_reduce(gradient.clone(), group=group)
        if self._late and group.rank() > 0:
            meet()
        buffers = [gradient.clone(memory_format=torch.contiguous_format) for gradient in gradients]
        pending = [collectives.all_reduce(buffer, group=group, async_op=True) for buffer in buffers]
        torch._foreach_copy_(gradients, buffers)
        if self._late and group.rank() == 0:
            if gradients and gradients[0].is_cuda:
                torch.cuda.current_stream().synchronize()  # the copies; the all-reduce runs on a stream of its own
            meet()
        for work in pending:
            work.wait()
