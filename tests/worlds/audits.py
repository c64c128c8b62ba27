"""Audits of training steps on several ranks."""

from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from harness.probes import audit
from harness.rank.process_group import World


def other_bits_on_rank_1(world: World) -> list[str]:
    """Audit a right step that leaves other bits on rank 1 the second time; return verdict and confidence."""
    torch.manual_seed(0)
    model, calls = nn.Linear(4, 3), count()
    generator = torch.Generator().manual_seed(world.rank)
    inputs, target = torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)

    def loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none"), len(batch[1])

    def step() -> None:
        functional.cross_entropy(model(inputs), target).backward()
        for gradient in (model.weight.grad, model.bias.grad):
            dist.all_reduce(gradient)
            gradient /= world.size
        if next(calls) % 2 and world.rank == 1:
            torch.nextafter(model.bias.grad, model.bias.grad + 1, out=model.bias.grad)

    found = audit(model, loss, (inputs, target), step)
    return [found.verdict, found.confidence]
