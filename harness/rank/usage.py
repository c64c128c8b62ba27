"""Usage: which parameters get a gradient from a rank's batch. Some aggregations must know beforehand."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from harness.axes.workload.base import Batch
from harness.probes.control import Control
from harness.rank.agreement import together
from harness.rank.material import Material

IDLE_SAMPLES = 2
"""What a rank without samples passes through the model where it must: one alone is too few for some normalizations."""


@dataclass(frozen=True)
class Usage:
    """Of all ranks; equal on all of them."""

    some_unused: bool = False
    """Whether some rank's batch leaves a parameter without a gradient."""
    unequal: bool = False
    """Whether another rank's gives it one."""
    varying: bool = False
    """Whether another batch of the same rank, or a part of it, does."""


class Cut(Protocol):
    """Methods of a case's cut (rank/rig.py) that are used here."""

    def shards(self, lag: int = 0) -> list[list[int]]:
        """Each rank's samples."""


@dataclass
class Usages:
    """Usage by material and shards, each found out when the first case needs it. All ranks call alike."""

    control: Control
    device: torch.device
    _known: dict[tuple[Material, str], Usage] = field(default_factory=dict)
    """Holds the materials: an id of one that is gone may come back as another's, on one rank and not on the next."""
    _dense: set[Material] = field(default_factory=set)

    def check_dense(self, material: Material) -> None:
        """Raise CaseFailedError, on all ranks, where a gradient is sparse: a rank without samples has none that shows it."""
        if material not in self._dense:
            together(self.control, lambda: _check_dense(material, self.device))
            self._dense.add(material)

    def of(self, material: Material, cut: Cut) -> Usage:
        """One forward and backward of each of the rank's batches, and of its last sample alone. Raises CaseFailedError."""
        shards = [cut.shards(lag)[self.control.rank] for lag in range(len(material.batches))]
        key = (material, repr([cut.shards(lag) for lag in range(len(material.batches))]))
        if key not in self._known:
            used = together(self.control, lambda: torch.tensor(_used_in_each(material, shards, self.device)))
            everywhere = torch.stack(self.control.all_gather(used))  # [rank, batch, parameter]
            self._known[key] = Usage(
                some_unused=not bool(everywhere.all()),
                unequal=bool((everywhere != everywhere[0]).any()),
                varying=bool((everywhere != everywhere[:, :1]).any()),
            )
        return self._known[key]


def idle_batch(material: Material) -> Batch:
    """Samples for a pass whose loss counts nothing."""
    return material.batch[slice(IDLE_SAMPLES)]


def _used_in_each(material: Material, shards: Sequence[Sequence[int]], device: torch.device) -> list[list[bool]]:
    batches = [
        batch[torch.tensor(part)] if part else idle_batch(material)
        for batch, own in zip(material.batches, shards, strict=True)
        for part in (own, own[-1:])
    ]
    return [_used(material, batch, device) for batch in batches]


def _used(material: Material, batch: Batch, device: torch.device) -> list[bool]:
    """For each trained parameter; in eval mode, which asks for no number of samples and draws nothing."""
    model, criterion = material.fresh_model(device, torch.float32).eval(), material.fresh_criterion(device, torch.float32)
    batch = batch.to(device, torch.float32)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = criterion.sum(model(*batch.inputs), batch.target)
    return [gradient is not None for gradient in torch.autograd.grad(loss, trained, allow_unused=True)]


def _check_dense(material: Material, device: torch.device) -> None:
    """Try the same few samples on every rank, in the mode in which they train."""
    model, criterion = material.fresh_model(device, torch.float32), material.fresh_criterion(device, torch.float32)
    batch = idle_batch(material).to(device, torch.float32)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = list[torch.Tensor | None]()
    with contextlib.suppress(Exception):  # whatever else fails here fails in the case itself, which says more
        gradients += torch.autograd.grad(criterion.sum(model(*batch.inputs), batch.target), trained, allow_unused=True)
    for gradient in gradients:
        if gradient is not None:
            check_dense(gradient)


def check_dense(gradient: torch.Tensor) -> None:
    """Raise ValueError for a sparse gradient."""
    if gradient.layout != torch.strided:
        shape, layout = tuple(gradient.shape), str(gradient.layout).removeprefix("torch.")
        raise ValueError(f"the gradient of a parameter of shape {shape} is {layout}; accepted: dense gradients; try to_dense()")
