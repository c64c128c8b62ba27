"""all_reduce with SUM, as the text has it, and what it must be divided by."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from harness.numerics.discrepancy import compare
from harness.probes.base import ONE_RANK, Machine, Probe, Question
from harness.schema.record import Observation
from harness.schema.seeding import derive_seed
from harness.tensors import collectives


class SumOverRanksProbe(Probe):
    """The text's example, x**2 of ten elements of each rank's own, in float64; held against every rank's x."""

    def questions(self, machine: Machine) -> list[Question]:
        return [Question("the text's x**2 of each rank", partial(_ask, machine), ONE_RANK if machine.size == 1 else None)]


def _ask(machine: Machine) -> Iterator[Observation]:
    generator = torch.Generator().manual_seed(derive_seed(machine.seed, "sum_over_ranks", str(machine.rank)))
    x = torch.randn(10, generator=generator, dtype=torch.float64).to(machine.device).requires_grad_()
    torch.sum(x**2).backward()
    assert x.grad is not None
    collectives.all_reduce(x.grad, op=dist.ReduceOp.SUM, group=machine.group)
    everyone = collectives.all_gather(x.detach(), machine.group)
    total: Tensor = torch.stack([2 * theirs for theirs in everyone]).sum(0)
    yield Observation("SUM", "relative_l2 from the sum over ranks", compare(x.grad, total).relative_l2)
    yield Observation("SUM", "scale against the mean over ranks", compare(x.grad, total / machine.size).scale)
    yield Observation("SUM", "ranks", machine.size)
