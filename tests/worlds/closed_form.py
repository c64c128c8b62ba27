"""Reductions, normalizations, aggregations and shardings in float64 on models whose gradient can be written down."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.axes.workload.base import Workload
from harness.rank.material import Material, check_equal_on_ranks, prepare
from harness.rank.process_group import World
from harness.rank.rig import Cut
from harness.rank.trial import Trial
from harness.rank.usage import Usages
from harness.schema.case import AXES
from tests.options import make, parts_of
from tests.worlds.serve import noted

CUTS = (
    ("regression", 12, "even"),
    ("tokens", 13, "even"),
    ("weighted", 13, "uneven"),
    ("tokens", 12, "by_length"),
    ("weighted", 12, "empty_rank"),
)
"""(workload, samples, sharding); 12 divides by 1, 2, 3 and 4, 13 by none but 1."""
FEATURES, CLASSES, POSITIONS, SAMPLES = 5, 3, 4, 40


def regression_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SAMPLES, FEATURES, generator=generator), torch.randn(SAMPLES, 1, generator=generator)


def token_data() -> tuple[Tensor, Tensor]:
    """Sequences in which unequal numbers of positions count, of some of them none."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(SAMPLES, POSITIONS, FEATURES, generator=generator)
    target = torch.randint(CLASSES, (SAMPLES, POSITIONS), generator=generator)
    lengths = torch.randint(0, POSITIONS + 1, (SAMPLES, 1), generator=generator)
    return inputs, target.where(torch.arange(POSITIONS) < lengths, -100)


class TokenClassifier(nn.Linear):
    """Logits [samples, classes, positions]."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).transpose(1, 2)


WORKLOADS = {
    "regression": Workload(model=partial(nn.Linear, FEATURES, 1), loss=nn.MSELoss, data=regression_data),
    "tokens": Workload(model=partial(TokenClassifier, FEATURES, CLASSES), loss=nn.CrossEntropyLoss, data=token_data),
    "weighted": Workload(
        model=partial(TokenClassifier, FEATURES, CLASSES),
        loss=partial(nn.CrossEntropyLoss, weight=torch.tensor([0.2, 1.0, 3.0])),
        data=token_data,
    ),
}


def sum_of_gradients(name: str, material: Material, indices: list[int], lag: int = 0) -> tuple[Tensor, Tensor, float]:
    """Of the weight, of the bias, and what the samples count; by hand."""
    batch = material.batches[lag]
    inputs, target = batch.inputs[0][indices].double(), batch.target[indices]
    weight, bias = (p.detach().double() for p in material.model.parameters())
    if name == "regression":
        error = 2 * (inputs @ weight.T + bias - target.double())
        return error.T @ inputs, error.sum(0), float(len(indices))
    flat, labels = inputs.reshape(-1, FEATURES), target.reshape(-1)
    per_class = torch.tensor([0.2, 1.0, 3.0]).double() if name == "weighted" else torch.ones(CLASSES, dtype=torch.float64)
    counts = (labels >= 0).double() * per_class[labels.clamp(min=0)]
    probabilities = torch.softmax(flat @ weight.T + bias, 1)
    error = (probabilities - nn.functional.one_hot(labels.clamp(min=0), CLASSES)) * counts[:, None]
    return error.T @ flat, error.sum(0), float(counts.sum())


def sum_of_losses(name: str, material: Material, indices: list[int]) -> float:
    """By hand."""
    inputs, target = material.batch.inputs[0][indices].double(), material.batch.target[indices]
    weight, bias = (p.detach().double() for p in material.model.parameters())
    output = inputs.reshape(-1, FEATURES) @ weight.T + bias
    if name == "regression":
        return float((output - target.double()).square().sum())
    labels = target.reshape(-1)
    per_class = torch.tensor([0.2, 1.0, 3.0]).double() if name == "weighted" else torch.ones(CLASSES, dtype=torch.float64)
    each = torch.logsumexp(output, 1) - output[torch.arange(len(labels)), labels.clamp(min=0)]
    return float((each * (labels >= 0).double() * per_class[labels.clamp(min=0)]).sum())


def expected(name: str, trial: Trial, normalization: str, aggregation: str, rank: int) -> tuple[list[Tensor], float]:
    """Gradient and loss: means over all terms, or of the ranks' means.

    With `aggregation=local` the gradient is this rank's, and the loss rank 0's.
    """
    shards = [list(shard) for shard in trial.cut.shards()]
    parts = [(*sum_of_gradients(name, trial.material, own), sum_of_losses(name, trial.material, own)) for own in shards]
    means = [(weight / (count or 1), bias / (count or 1), 1.0, loss / (count or 1)) for weight, bias, count, loss in parts]
    if aggregation == "local":
        return list(means[rank][:2]), means[0][3]
    if {"rank_mean": True, "global_mean": False}[normalization]:
        parts = means
    weight, bias, count, loss = map(sum, zip(*parts, strict=True))
    return [weight / count, bias / count], loss / count


AXES_OF_A_CELL = ("reduction", "normalization", "aggregation")


def skipped(world: World, workload: str, size: int, sharding: str, cells: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the cells that cannot be measured, each with its reason; arguments as in `errors`."""
    reasons = ((cell, trial.skip_reason()) for cell, trial in _trials(world, workload, size, sharding, cells))
    return {cell: reason for cell, reason in reasons if reason}


def errors(world: World, workload: str, size: int, sharding: str, cells: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Run each cell (reduction, normalization, aggregation) on a batch of `size` samples.

    Return {"errors": {cell: largest error of any rank's gradient, over the true one's largest element},
    "losses": {cell: error of the loss, over the true one}, "skipped": {cell: reason}}.
    """
    skipped, cuts = dict[str, str](), dict[str, tuple[Cut, float]]()
    truths, rows = dict[tuple[str, bool], tuple[list[Tensor], float]](), list[tuple[float, float]]()
    for cell, trial in _trials(world, workload, size, sharding, cells):
        if reason := trial.skip_reason():
            skipped[cell] = reason
            continue
        with noted(cell):
            measured = trial.measure(enter=lambda phase: None)
        _, normalization, aggregation = cell.split()
        key = (normalization, aggregation == "local")
        if key not in truths:
            truths[key] = expected(workload, trial, normalization, aggregation, world.rank)
        gradient, loss = truths[key]
        apart = [(g - t).abs().max() / (t.abs().max() or 1) for (_, g), t in zip(measured.gradient, gradient, strict=True)]
        rows.append((float(torch.stack(apart).amax()), measured.loss))
        cuts[cell] = trial.cut, loss
    ranks = world.control.all_gather(torch.tensor(rows, dtype=torch.float64).reshape(-1, 2))
    worst, losses = torch.stack(ranks).amax(0)[:, 0].tolist(), torch.stack(ranks)[:, :, 1].T.tolist()
    return {
        "errors": dict(zip(cuts, worst, strict=True)),
        "losses": {
            cell: abs(cut.loss(own) - right) / right for (cell, (cut, right)), own in zip(cuts.items(), losses, strict=True)
        },
        "skipped": skipped,
    }


def _trials(
    world: World, workload: str, size: int, sharding: str, cells: Sequence[Sequence[str]]
) -> Iterator[tuple[str, Trial]]:
    usages = Usages(world.control, world.device)
    options = {axis: make(axis) for axis in AXES if axis != "workload"}
    material = prepare(WORKLOADS[workload], workload, 0, size)
    check_equal_on_ranks(material, world.control)
    for cell in cells:
        chosen = dict(zip(AXES_OF_A_CELL, cell, strict=True))
        parts = parts_of(options, WORKLOADS[workload], sharding=sharding, sync="barrier", **chosen)
        trial = Trial(parts, material, world, asked_warm_up=1, measured=1)
        yield " ".join(cell), replace(trial, usage=usages.of(material, trial.cut))
