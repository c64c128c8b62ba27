"""Aggregations on models whose parameters are not all alike, in float64, against torch.autograd.grad of the whole batch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from harness.axes.workload.base import Workload
from harness.probes.bits import digest
from harness.rank.material import Material, prepare
from harness.rank.process_group import World
from harness.rank.trial import Trial
from harness.rank.usage import Usages
from harness.schema.case import AXES
from tests.options import make, parts_of
from tests.worlds.serve import noted

FEATURES, SAMPLES = 6, 32
SIZE = 9
"""No number of ranks divides it but 1 and 3."""


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(SAMPLES, FEATURES, generator=generator)
    return inputs, torch.randn(SAMPLES, 1, generator=generator)


class Frozen(nn.Sequential):
    """The first layer gets no gradient; between the layers stand modules without parameters."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Identity(), nn.Linear(8, 1))
        self[0].requires_grad_(False)


class Tied(nn.Module):
    """One weight is used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.last = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 1)
        self.out.weight = self.into.weight

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.last(torch.tanh(self.out(torch.tanh(self.into(inputs)))))
        return last


class NeverUsed(nn.Module):
    """Some parameters take no part, on any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        used: Tensor = self.used(inputs)
        return used


class SometimesUsed(nn.Module):
    """A branch that a batch takes only if one of its samples calls for it: with this test's seed, not every rank's does."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rare = nn.Linear(FEATURES, 1), nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        always: Tensor = self.always(inputs)
        called = inputs[:, :1] > THRESHOLD
        return always + torch.where(called, self.rare(inputs), 0.0) if bool(called.any()) else always


class Nested(nn.Module):
    """Module lists in module lists, and in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.ModuleList(Block() for _ in range(2)) for _ in range(2))
        self.last = nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        for tower in self.towers:
            for block in tower:
                inputs = block(inputs)
        last: Tensor = self.last(inputs)
        return last


class Block(nn.Module):
    """Two layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.tanh(layer(inputs))
        return inputs


class Transposed(nn.Module):
    """The weight is a transposed view: dense, and not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 4).t())
        self.last = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.last(torch.tanh(inputs @ self.weight.t()))
        return last


class Column(nn.Module):
    """A hook makes every gradient a column of a larger tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 4), nn.Linear(4, 1)
        self.hooked = False

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self.hooked:  # a copy of the model has no hooks
            self.hooked = True
            for parameter in self.parameters():
                parameter.register_post_accumulate_grad_hook(_into_a_column)
        last: Tensor = self.last(torch.tanh(self.first(inputs)))
        return last


def _into_a_column(parameter: Tensor) -> None:
    assert parameter.grad is not None
    wide = torch.full((*parameter.shape, 5), 1e3, dtype=parameter.dtype)
    wide[..., 3] = parameter.grad
    parameter.grad = wide[..., 3]


THRESHOLD = 1.5
MODELS = {model.__name__: model for model in (Frozen, Tied, NeverUsed, SometimesUsed, Nested, Transposed, Column)}
REDUCTIONS = ("mean", "none", "micro_batch")


def truth(material: Material) -> list[Tensor]:
    model, batch = material.fresh_model(torch.device("cpu"), torch.float64), material.batch
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = nn.functional.mse_loss(model(batch.inputs[0].double()), batch.target.double())
    return list(torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True))


def errors(world: World, cells: Sequence[Sequence[str]]) -> dict[str, dict[str, object]]:
    """Run each cell (model, aggregation, reduction).

    Return {"errors": {cell: largest error of any rank's gradient, over the true one's largest element},
    "skipped": {cell: reason}, "bits": {cell: True if all ranks hold the same}}.
    """
    options, usages = {axis: make(axis) for axis in AXES if axis != "workload"}, Usages(world.control, world.device)
    workloads = {name: Workload(model=model, loss=partial(nn.MSELoss), data=data) for name, model in MODELS.items()}
    materials = {name: prepare(workload, name, 0, SIZE) for name, workload in workloads.items()}
    found: dict[str, dict[str, object]] = {"errors": {}, "skipped": {}, "bits": {}}
    for name, aggregation, reduction in cells:
        material = materials[name]
        parts = parts_of(options, workloads[name], aggregation=aggregation, reduction=reduction, normalization="global_mean")
        trial = Trial(parts, material, world, asked_warm_up=1, measured=2)
        trial = replace(trial, usage=usages.of(material, trial.cut))
        case = f"{name} {aggregation} {reduction}"
        if reason := trial.skip_reason():
            found["skipped"][case] = reason
        elif trial.cut.spans_ranks:
            with noted(case):
                gradient = trial.measure(enter=lambda phase: None).gradient
            largest = max(float(t.abs().max()) for t in truth(material))
            error = max(float((g - t).abs().max()) for (_, g), t in zip(gradient, truth(material), strict=True)) / largest
            errors_of_ranks = world.control.all_gather(torch.tensor(error, dtype=torch.float64))
            found["errors"][case] = max(map(float, errors_of_ranks))
            found["bits"][case] = len(set(world.control.all_gather_text(digest(gradient).hex()))) == 1
    return found
