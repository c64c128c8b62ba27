"""The true gradients, in float64, by a path that is not the one under test.

They come from torch.autograd.grad of the summed loss, not from backward and `.grad`; ranks' parts are added on rank 0 in order
of rank, not by a collective; and they wait in files.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan

import torch
from torch import Tensor, nn

from harness.axes.workload.base import Batch, Criterion
from harness.probes.control import Control
from harness.rank.agreement import together
from harness.rank.gradient_store import GradientStore
from harness.rank.material import Material, step_seed

Shards = Sequence[Sequence[int]]
Rounding = Callable[[Tensor], Tensor | None]
"""What a precision makes of a floating tensor."""


class References:
    """References by name in a GradientStore, each computed when the first case needs it. All ranks call alike.

    Raises CaseFailedError, on all ranks, when the workload cannot be computed in float64 on one of them.
    """

    def __init__(self, store: GradientStore, control: Control, device: torch.device, seed: int) -> None:
        self._store, self._control, self._device, self._seed = store, control, device, seed
        self._known: set[str] = set()
        self._losses: dict[str, float] = {}

    def shard_wise(
        self, key: str, material: Material, shards: Sequence[Sequence[int]], rounding: Rounding | None = None
    ) -> str:
        """The batch cut as `shards`, each part with its own batch statistics, over the global denominator. On rank 0."""
        name = f"reference.{key}"
        if name not in self._known:
            own = _picked(material, shards[self._control.rank])
            summed = together(self._control, lambda: self._summed(material, own, rounding=rounding))
            self._save_sum_over_ranks(name, summed, sum(material.terms))
            self._known.add(name)
        return name

    def full_batch(self, key: str, material: Material, rounding: Rounding | None = None) -> str:
        """One forward of the whole batch. On rank 0."""
        name = f"full_batch.{key}"
        if name not in self._known:
            whole = material.batch if self._control.rank == 0 else None
            summed = together(self._control, lambda: self._summed(material, whole, rounding=rounding) if whole else None)
            if summed is not None:
                self._save(name, summed, sum(material.terms))
            self._known.add(name)
        return name

    def own_shard(self, key: str, material: Material, shard: Sequence[int], rounding: Rounding | None = None) -> str:
        """The mean over this rank's shard alone; 0 where it has none. On every rank, each its own."""
        name = f"own_shard.{key}"
        if name not in self._known:
            own = _picked(material, shard)
            summed = together(self._control, lambda: self._summed(material, own, rounding=rounding))
            self._save(name, summed, sum(material.terms[index] for index in shard) or 1.0)
            self._known.add(name)
        return name

    def weighted(self, key: str, material: Material, own: Batch, weights: Sequence[float], *, over_ranks: bool) -> str:
        """The sum of weight * (gradient of the sample's loss) over `own`, and over ranks: on rank 0; or each rank's own."""
        name = f"weighted.{key}"
        if name not in self._known:
            summed = together(self._control, lambda: self._summed(material, own, weights))
            if over_ranks:
                self._save_sum_over_ranks(name, summed, 1.0)
            else:
                self._save(name, summed, 1.0)
            self._known.add(name)
        return name

    def shortened(self, name: str, key: str, factor: Callable[[float], float], *, everywhere: bool) -> str:
        """Another gradient times `factor` of its L2 norm: on rank 0; or each rank's own."""
        short = f"{name}.{key}"
        if short not in self._known:
            if everywhere or self._control.rank == 0:
                norm = math.sqrt(sum(float(tensor.square().sum()) for _, tensor in self._store.load(name)))
                self._store.save(short, ((parameter, tensor * factor(norm)) for parameter, tensor in self._store.load(name)))
            self._losses[short] = self._losses.get(name, nan)
            self._known.add(short)
        return short

    def loss(self, name: str) -> float:
        """The loss that a reference is the gradient of, from the same forward; NaN on ranks that do not have it."""
        return self._losses.get(name, nan)

    def summed(
        self, material: Material, batch: Batch, weights: Sequence[float] | None = None, rounding: Rounding | None = None
    ) -> dict[str, Tensor]:
        """Gradient of the sum of the batch's losses, or of their weighted sum, on this rank alone; nothing is saved."""
        return self._summed(material, batch, weights, rounding).gradient

    def _summed(
        self, material: Material, batch: Batch, weights: Sequence[float] | None = None, rounding: Rounding | None = None
    ) -> "_Summed":
        ready = self._ready(material, batch, rounding)
        if not len(batch):
            return _Summed({name: torch.zeros_like(parameter).cpu() for name, parameter in ready.named.items()}, 0.0)
        loss = _loss(ready.criterion, ready.output(), ready.batch.target, weights)
        return _Summed(ready.gradient(loss), float(loss.detach()))

    def each(self, material: Material, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """Gradient of each sample's loss, in the batch that it is in, by one forward."""
        ready = self._ready(material, batch)
        if not len(batch):
            return
        output = ready.output()
        losses = ready.criterion.none(output, ready.batch.target).reshape(len(batch), -1).sum(1)
        for place in range(len(batch)):
            yield ready.gradient(losses[place], keep=place < len(batch) - 1)

    def _ready(self, material: Material, batch: Batch, rounding: Rounding | None = None) -> "_Ready":
        model = material.fresh_model(self._device, torch.float64)
        batch = batch.to(self._device, torch.float64)
        if rounding is not None and len(batch):
            batch = _round(model, batch, rounding)
        seed = step_seed(self._seed, material.name, self._control.rank)
        return _Ready(model, material.fresh_criterion(self._device, torch.float64), batch, seed)

    def _save_sum_over_ranks(self, name: str, own: "_Summed", denominator: float) -> None:
        losses = self._control.gather(torch.tensor([own.loss], dtype=torch.float64, device="cpu"))
        if self._control.rank == 0:
            total = ((parameter, self._sum_over_ranks(tensor)) for parameter, tensor in own.gradient.items())
            self._store.save(name, ((parameter, tensor / denominator) for parameter, tensor in total))
            self._losses[name] = sum(map(float, losses)) / denominator
            return
        for tensor in own.gradient.values():
            self._control.send_to_0(tensor.contiguous())

    def _sum_over_ranks(self, own: Tensor) -> Tensor:
        total, buffer = own.clone(), torch.empty_like(own, memory_format=torch.contiguous_format)
        for rank in range(1, self._control.size):
            total += self._control.receive(buffer, rank)
        return total

    def _save(self, name: str, summed: "_Summed", denominator: float) -> None:
        self._store.save(name, ((parameter, tensor / denominator) for parameter, tensor in summed.gradient.items()))
        self._losses[name] = summed.loss / denominator


@dataclass(frozen=True)
class _Summed:
    """A sum of losses, and its gradient by parameter."""

    gradient: dict[str, Tensor]
    loss: float


@dataclass(frozen=True)
class _Ready:
    """A model in float64, and what it is to be differentiated on."""

    model: nn.Module
    criterion: Criterion
    batch: Batch
    seed: int

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """Parameters that get a gradient."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def output(self) -> Tensor:
        torch.manual_seed(self.seed)
        output: Tensor = self.model(*self.batch.inputs)
        return output

    def gradient(self, loss: Tensor, *, keep: bool = False) -> dict[str, Tensor]:
        """On the CPU, in one piece for each parameter. keep: another loss of the same output follows."""
        named = self.named
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=keep)
        both = zip(named.items(), found, strict=True)
        return {name: (torch.zeros_like(p) if g is None else g).cpu() for (name, p), g in both}


def _picked(material: Material, shard: Sequence[int]) -> Batch:
    return material.batch[torch.tensor(shard, dtype=torch.long)]


@torch.no_grad()
def _round(model: nn.Module, batch: Batch, rounding: Rounding) -> Batch:
    """Give the model, and the batch's floating inputs, the values that the precision computes with."""

    def rounded(tensor: Tensor) -> Tensor:
        found = rounding(tensor) if tensor.is_floating_point() else None
        return tensor if found is None else found

    for tensor in (*model.parameters(), *model.buffers()):
        tensor.copy_(rounded(tensor))
    return replace(batch, inputs=tuple(map(rounded, batch.inputs)))


def _loss(criterion: Criterion, output: Tensor, target: Tensor, weights: Sequence[float] | None) -> Tensor:
    if weights is None:
        return criterion.sum(output, target)
    each = criterion.none(output, target).reshape(len(target), -1).sum(1)
    return each @ torch.tensor(weights, dtype=each.dtype, device=each.device)
