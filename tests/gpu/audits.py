"""Audits of a right and of a wrong training step: `torchrun --nproc-per-node=2 -m tests.gpu.audits [nccl|gloo]`

Parameters are on the GPU where there is one, and DistributedDataParallel sums them over the backend. The exit status is 1 if a
verdict is not what it should be.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from harness.probes import audit

CUDA = torch.cuda.is_available()
WRONG = "weighting"
"""Verdict on a mean of means."""


def main(backend: str) -> int:
    dist.init_process_group(backend)
    rank, size = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", rank % torch.cuda.device_count()) if CUDA else torch.device("cpu")
    if CUDA:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = DistributedDataParallel(nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50)).to(device))
    tokens = torch.randint(0, 50, (6, 12), generator=torch.Generator().manual_seed(rank)).to(device)
    lengths = torch.arange(6, device=device) + 1 + 4 * rank
    target = tokens.roll(-1, 1).where(torch.arange(12, device=device) < lengths[:, None], -100)
    failed = 0
    for wrong in (False, True):
        step = _Step(model, (tokens, target), size, wrong)
        verdict = audit(model, _loss, (tokens, target), step)
        passes = verdict.verdict == WRONG if wrong else verdict.clean
        failed += not passes
        if rank == 0:
            print(
                f"{'wrong' if wrong else 'right'} step: {verdict.verdict}; {'ok' if passes else 'NOT AS EXPECTED'}", flush=True
            )
    dist.destroy_process_group()
    return int(failed > 0)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    inputs, target = batch
    summed = functional.cross_entropy(model(inputs).transpose(1, 2), target, reduction="sum")
    return summed, int((target >= 0).sum())


class _Step:
    """A training step that leaves the aggregated gradient in .grad."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor], size: int, wrong: bool) -> None:
        self.model, self.batch, self.size, self.wrong = model, batch, size, wrong

    def __call__(self) -> None:
        summed, count = _loss(self.model, self.batch)
        if self.wrong:  # a mean over ranks of the means of their tokens
            (summed / count).backward()
            return
        total = torch.tensor(float(count), device=self.batch[0].device)
        dist.all_reduce(total)
        (summed * self.size / total).backward()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
