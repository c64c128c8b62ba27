"""Audits of training steps on several ranks."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional

from harness.probes import audit
from harness.rank.process_group import World


class _Attention(nn.Module):
    """One block of a transformer, and a head of classes."""

    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(self.embed(inputs)).mean(1))
        return out


def _perceptron(width: int, classes: int = 5) -> nn.Module:
    layers = [nn.Linear(96, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)]
    return nn.Sequential(nn.Flatten(), *layers)


_MODELS = {"mlp": _perceptron, "transformer": _Attention}
_BFLOAT16 = torch.bfloat16
_SHARDED = {
    "fsdp_compute": MixedPrecisionPolicy(param_dtype=_BFLOAT16, reduce_dtype=torch.float32),
    "fsdp_reduce": MixedPrecisionPolicy(reduce_dtype=_BFLOAT16),
}


@dataclass(frozen=True)
class Step:
    """A training step in bfloat16, and the mistake in it."""

    how: str = "autocast"
    """autocast, passes (three of them), hook (sends float16: gloo sums no bfloat16), fsdp_compute, fsdp_reduce."""
    model: str = "mlp"
    width: int = 32
    seed: int = 0
    samples: tuple[int, ...] = (32, 32)
    """Samples of each rank."""
    factor: float = 1.0
    """On the loss."""
    own_means: bool = False
    """True for the mean of the ranks' means."""
    of_one: float = 1.0
    """Factor on the gradient of one parameter, which the seed picks."""


def in_bfloat16(world: World, steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Audit steps that compute or send in bfloat16, and say so nowhere."""
    return [_audited(world, Step(**one)) for one in steps]


def _audited(world: World, chosen: Step) -> dict[str, Any]:
    torch.manual_seed(chosen.seed)
    model, own = _MODELS[chosen.model](chosen.width), chosen.samples[world.rank]
    trained = _distributed(world, copy.deepcopy(model), chosen.how)
    generator = torch.Generator().manual_seed(1000 * chosen.seed + world.rank)
    inputs, target = torch.randn(own, 6, 16, generator=generator), torch.randint(5, (own,), generator=generator)
    divisor = own if chosen.own_means else sum(chosen.samples) / world.size
    passes = 3 if chosen.how == "passes" else 1

    def step() -> None:
        parts = list(zip(inputs.chunk(passes), target.chunk(passes), strict=True))
        for at, (part, labels) in enumerate(parts):
            with nullcontext() if at == len(parts) - 1 or passes == 1 else trained.no_sync():  # type: ignore[operator]
                with torch.autocast("cpu", _BFLOAT16, enabled=chosen.how in ("autocast", "passes")):
                    losses = functional.cross_entropy(trained(part), labels, reduction="none")
                (chosen.factor * losses.sum() / divisor).backward()
        if chosen.of_one != 1:
            gradients = [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]
            gradients[chosen.seed % len(gradients)] *= chosen.of_one

    found = audit(model, _each_loss, (inputs, target), step, trained=trained, accumulation_steps=passes)
    kept = ("verdict", "cause", "clean", "limit", "distance", "floor", "factor", "statement")
    return {name: getattr(found, name) for name in kept}


def _distributed(world: World, model: nn.Module, how: str) -> nn.Module:
    if how in _SHARDED:
        mesh = DeviceMesh.from_group(world.measured, world.device.type)
        sharded: nn.Module = fully_shard(model, mesh=mesh, mp_policy=_SHARDED[how])
        return sharded
    replica = nn.parallel.DistributedDataParallel(model, process_group=world.measured)
    if how == "hook":
        replica.register_comm_hook(world.measured, fp16_compress_hook)
    return replica


def _each_loss(model: nn.Module, batch: Any) -> tuple[Tensor, float]:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none"), len(batch[1])


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


def a_step_that_raises_on_rank_1(world: World) -> list[str]:
    """Audit a step that raises on rank 1 before its collective; return the error of each rank.

    Rank 0 waits in the step's all-reduce until rank 1 takes part, which it does once the audit has raised there.
    """
    torch.manual_seed(0)
    model, group = nn.Linear(4, 3), dist.new_group(backend="gloo", timeout=timedelta(seconds=30))
    batch = (torch.randn(6, 4), torch.randint(3, (6,)))

    def step() -> None:
        if world.rank == 0:
            dist.all_reduce(torch.ones(1), group=group)
        raise ValueError(f"planted on rank {world.rank}")

    try:
        audit(model, _each_loss, batch, step)
        error = ""
    except (ValueError, RuntimeError) as raised:
        error = str(raised)
    if world.rank == 1:
        dist.all_reduce(torch.ones(1), group=group)
    dist.destroy_process_group(group)
    return world.control.all_gather_text(error)
