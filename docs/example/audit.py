"""A plain training script, as a user writes one, that asks why its gradient is what it is.

    torchrun --nproc-per-node=2 docs/example/audit.py {wrong,right}

Ranks have unequal numbers of tokens. `wrong` divides each rank's loss by its own tokens, and lets DistributedDataParallel take
the mean of the means; `right` divides by everybody's. Rank 0 prints the verdict.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from harness import audit

torch.manual_seed(0)
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
model = DistributedDataParallel(nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50)))
tokens = torch.randint(0, 50, (6, 12), generator=torch.Generator().manual_seed(rank))
lengths = torch.arange(6) + 1 + 4 * rank
target = tokens.roll(-1, 1).where(torch.arange(12) < lengths[:, None], -100)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
    inputs, target = batch
    summed = functional.cross_entropy(model(inputs).transpose(1, 2), target, reduction="sum")
    return summed, int((target >= 0).sum())


def step() -> None:
    summed, count = loss(model, (tokens, target))
    if sys.argv[1] == "wrong":
        (summed / count).backward()
        return
    total = torch.tensor(float(count))
    dist.all_reduce(total)
    (summed * size / total).backward()


verdict = audit(model, loss, (tokens, target), step)
if rank == 0:
    print(verdict)
    for weight in verdict.weights:
        if weight.sample < 0:
            print(f"rank {weight.rank} weighs {weight.weight / weight.expected:.4f} of what it should")
dist.destroy_process_group()
