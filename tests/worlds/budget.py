"""One cause of a distance at a time, planted, and the budget that is made of it, on four ranks.

Each case is exact but for its cause, in float64 or by sums that no kernel rounds.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.axes.reduction.base import Reduction
from harness.axes.reduction.sum import SumReduction
from harness.axes.workload.base import Workload
from harness.rank.counterfactuals import Known
from harness.rank.diagnose import Diagnoses
from harness.rank.gradient_store import GradientStore
from harness.rank.material import prepare
from harness.rank.process_group import World
from harness.rank.reference import References
from harness.rank.trial import Trial
from harness.schema.case import AXES
from harness.schema.context import Context
from tests.options import make, parts_of

ELEMENTS = 3000
USUAL = {"reduction": "sum", "normalization": "global_mean", "fault": "none"}


class Terms(nn.Module):
    """Whose gradient is the sum of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ELEMENTS))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight * inputs


class Quadratic(Terms):
    """Whose gradient is its parameters, as often as there are samples."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.weight.square() * 0.5 * inputs


class Plain(nn.Module):
    """The sum of a sample's outputs."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = output.sum(1)
        return {"none": each, "sum": each.sum(), "mean": each.mean()}[self.reduction]


class Together(SumReduction):
    """Not asked of one rank alone: a batch of four on one rank would be summed there, and rounded by another order."""

    def unsupported(self, context: Context) -> str | None:
        return "one rank" if context.world_size == 1 else super().unsupported(context)


def wide() -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, 4, ELEMENTS, generator=torch.Generator().manual_seed(1))
    return drawn[0] * (4 * drawn[1]).exp(), torch.zeros(4, 1)


def ones() -> tuple[Tensor, Tensor]:
    return torch.ones(8, ELEMENTS), torch.zeros(8, 1)


def budgets(world: World) -> dict[str, dict[str, object]]:
    """Return {cause: {"verdict": ..., "steps": {step: share}, "proved": ...}}."""
    options = {axis: make(axis) for axis in AXES}
    ordered = Workload(model=Terms, loss=Plain, data=wide)
    rounded = Workload(model=Quadratic, loss=Plain, data=ones)
    shipped = options["workload"]
    cases: dict[str, tuple[Workload, int, dict[str, str], Reduction | None]] = {
        "normalization": (shipped["mlp_digits"], 16, {"normalization": "rank_mean", "sharding": "uneven"}, None),
        "batch coupling": (shipped["cnn_digits"], 16, {}, None),
        "precision of communication": (shipped["mlp_digits"], 16, {"communication": "bf16"}, None),
        "summation order": (ordered, 4, {"precision": "fp32"}, Together()),
        "precision of parameters": (rounded, 8, {"precision": "bf16"}, None),
    }
    told: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = GradientStore(Path(folder), Path(folder))
        references = References(store, world.control, world.device, 0)
        diagnoses = Diagnoses(store, references)
        for cause, (workload, size, chosen, reduction) in cases.items():
            parts = parts_of(
                options, workload, **{"reduction": "sum", "normalization": "global_mean", "fault": "none", **chosen}
            )
            parts = replace(parts, reduction=reduction) if reduction else parts
            trial = Trial(parts, prepare(workload, cause, 0, size), world, asked_warm_up=0, measured=2)
            assert trial.skip_reason() is None, trial.skip_reason()
            shards, rounding = trial.cut.shards(), parts.precision.rounded
            coarse = rounding(torch.ones(())) is not None
            known = Known(
                references.shard_wise(cause, trial.material, shards),
                references.full_batch(cause, trial.material),
                references.shard_wise(f"{cause}.rounded", trial.material, shards, rounding) if coarse else None,
                references.full_batch(f"{cause}.rounded", trial.material, rounding) if coarse else None,
            )
            found = diagnoses.of(cause, trial, trial.measure(enter=lambda phase: None).gradient, known)
            ladder = found.ladder
            told[cause] = {
                "verdict": found.verdict,
                "steps": {name: step.share for name, step in ladder.steps} if ladder else {},
                "proved": bool(ladder and ladder.proved),
            }
    return told
