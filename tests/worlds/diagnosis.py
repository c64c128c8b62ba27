"""Random cases, most of them with a fault, each with the verdict of its diagnosis.

What is right is stated here, from the fault that was planted, before any diagnosis; the diagnosis
is told of no fault. Cases in which the fault does nothing (`does_something`) are drawn again, and so are those that
differentiate another function than their reference on purpose, or that the matrix would skip.
"""

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.axes.fault.alias import AliasFault
from harness.axes.fault.base import Fault
from harness.axes.fault.double_division import DoubleDivisionFault
from harness.axes.fault.dropped_input import DroppedInputFault
from harness.axes.fault.dropped_rank import DroppedRankFault
from harness.axes.fault.dropped_sample import DroppedSampleFault
from harness.axes.fault.missing_all_reduce import MissingAllReduceFault
from harness.axes.fault.missing_division import MissingDivisionFault
from harness.axes.fault.missing_zero_grad import MissingZeroGradFault
from harness.axes.fault.none import NoneFault
from harness.axes.fault.rank_counted_twice import RankCountedTwiceFault
from harness.axes.fault.read_before_wait import ReadBeforeWaitFault
from harness.axes.fault.stale_rank import StaleRankFault
from harness.axes.workload.base import Workload
from harness.probes.diagnosis.explain import Explanation
from harness.probes.diagnosis.hypotheses import close
from harness.rank.case_witness import facts_of
from harness.rank.counterfactuals import Known
from harness.rank.diagnose import Diagnoses
from harness.rank.gradient_store import GradientStore
from harness.rank.material import Material, prepare
from harness.rank.process_group import World
from harness.rank.reference import References
from harness.rank.theory import expected, ideal, other_function, right
from harness.rank.trial import Trial
from harness.rank.usage import Usages
from harness.schema.case import AXES
from harness.schema.record import CLEAN, NOT_REDUCED, SCALE, STALE, WEIGHTING
from tests.options import make, parts_of
from tests.worlds.closed_form import FEATURES, WORKLOADS, regression_data
from tests.worlds.serve import noted

CLEAN_AGGREGATIONS = ("all_reduce", "flat", "bucketed", "ddp", "all_reduce_avg", "overlap", "reduce_scatter_all_gather", "fsdp")
FAULTY_AGGREGATIONS = ("all_reduce", "flat", "bucketed", "async_bucketed", "all_reduce_avg", "hierarchical", "local")


@dataclass(frozen=True)
class Drawn:
    """One case."""

    seed: int
    workload: str
    fault: str
    chosen: dict[str, str]
    size: int
    trial: Trial


def fault_of(name: str, draw: random.Random, ranks: int) -> Fault:
    """With a random place."""
    rank, sample = draw.randrange(ranks), draw.randrange(4)
    made: dict[str, Fault] = {
        "none": NoneFault(),
        "alias": AliasFault(),
        "double_division": DoubleDivisionFault(),
        "dropped_input": DroppedInputFault(rank, sample),
        "dropped_rank": DroppedRankFault(rank),
        "dropped_sample": DroppedSampleFault(rank, sample),
        "missing_all_reduce": MissingAllReduceFault(),
        "missing_division": MissingDivisionFault(),
        "missing_zero_grad": MissingZeroGradFault(),
        "rank_counted_twice": RankCountedTwiceFault(rank),
        "read_before_wait": ReadBeforeWaitFault(),
        "stale_rank": StaleRankFault(rank),
    }
    return made[name]


FAULTS = (
    *("alias", "double_division", "dropped_input", "dropped_rank", "dropped_sample", "missing_all_reduce"),
    *("missing_division", "missing_zero_grad", "rank_counted_twice", "read_before_wait", "stale_rank"),
)
KINDS = {
    "alias": (WEIGHTING, "alias"),
    "dropped_input": (WEIGHTING, "dropped_input"),
    "dropped_rank": (WEIGHTING, "lost_rank"),
    "dropped_sample": (WEIGHTING, "dropped_sample"),
    "rank_counted_twice": (WEIGHTING, "double_count"),
    "stale_rank": (STALE, "stale_rank"),
    "double_division": (SCALE, "scale"),
    "missing_division": (SCALE, "scale"),
    "missing_zero_grad": (SCALE, "scale"),
    "missing_all_reduce": (NOT_REDUCED, "not_reduced"),
    "read_before_wait": (NOT_REDUCED, "not_reduced"),
}


def does_something(trial: Trial) -> bool:
    """Whether the fault changes what any sample weighs that counts at all, or leaves a rank without others' parts.

    Where the mean of means is asked for, it may also undo that: the two together leave what is right.
    """
    cut, fault = trial.cut, trial.parts.fault
    if fault.leaves_own:
        return sum(count > 0 for count in cut.counts()) > 1
    planted = expected(cut, trial.iterations)
    assert planted is not None
    return all(
        any(
            (one.lag != other.lag or not math.isclose(one.weights[place] or 0.0, other.weights[place] or 0.0)) and term > 0
            for one, other, terms in zip(planted, without, cut.terms(), strict=True)
            for place, term in enumerate(terms)
        )
        for without in (right(cut), ideal(cut))
    )


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, 1),
        )
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.last(torch.tanh(self.second(torch.tanh(self.first(inputs)))))
        return output


class Maker:
    """Draws cases, and makes what they share once."""

    def __init__(self, world: World) -> None:
        self.world, self.options = world, {axis: make(axis) for axis in AXES}
        tied = Workload(model=Tied, loss=nn.MSELoss, data=regression_data)
        self.workloads: dict[str, Workload] = {**self.options["workload"], **WORKLOADS, "tied": tied}
        self.usages = Usages(world.control, world.device)
        self._materials: dict[tuple[str, int], Material] = {}

    def material(self, name: str, size: int) -> Material:
        if (name, size) not in self._materials:
            self._materials[name, size] = prepare(self.workloads[name], name, 0, size, batches=2)
        return self._materials[name, size]

    def draw(self, seed: int, kind: str) -> Drawn:
        """The first that can be made, and in which the fault does something."""
        draw = random.Random(f"{kind} {seed} {self.world.size}")
        fault = FAULTS[seed % len(FAULTS)] if kind == "fault" else "none"
        while True:
            drawn = self._try(seed, fault, draw)
            trial = drawn.trial
            if trial.skip_reason() or other_function(trial.cut):
                continue
            if fault == "none" or does_something(trial):
                return drawn

    def _try(self, seed: int, fault: str, draw: random.Random) -> Drawn:
        planted = fault_of(fault, draw, self.world.size)
        aggregations = CLEAN_AGGREGATIONS if fault == "none" else FAULTY_AGGREGATIONS
        chosen = {
            "reduction": draw.choice(list(self.options["reduction"])),
            "normalization": "global_mean" if fault == "none" else draw.choice(["global_mean", "rank_mean"]),
            "sharding": draw.choice(["even", "uneven", "by_length", "empty_rank"]),
            "aggregation": draw.choice(aggregations),
            "precision": draw.choice(["fp32", "fp32", "fp64", "bf16", "bf16_autocast", "fp16_scaled"]),
            "communication": draw.choice(["same", "same", "same", "bf16", "fp16"]),
            "sync": draw.choice(["none", "barrier"]),
            "clip": draw.choice(["none", "none", "none", "by_norm"]),
        }
        name = draw.choice(list(self.workloads))
        size = draw.choice([6, 9, 12, 13, 16, 24])
        parts = parts_of({**self.options, "fault": {fault: planted}}, self.workloads[name], **{**chosen, "fault": fault})
        trial = Trial(
            parts, self.material(name, size), self.world, asked_warm_up=draw.choice([0, 1]), measured=draw.choice([2, 3])
        )
        if parts.aggregation.in_backward:
            trial = Trial(**{**vars(trial), "usage": self.usages.of(trial.material, trial.cut)})
        return Drawn(seed, name, fault, chosen, size, trial)


def is_right(drawn: Drawn, found: Explanation) -> bool:
    """By the equivalence classes of docs/diagnosis.md: the planted cause is named, alone or among those that fit as well."""
    if drawn.fault == "none":
        return found.verdict in CLEAN
    kind, cause = KINDS[drawn.fault]
    causes = {one.split("+")[-1] for one in found.cause.split("|")}
    if drawn.fault == "dropped_sample" and found.verdict == SCALE and abs(found.factor) < 1e-9:
        return not drawn.trial.cut.spans_ranks  # the only sample of a rank that sums with nobody: nothing is left
    if cause not in causes:
        return False
    several = len(found.cause.split("|")) > 1
    if drawn.fault in ("dropped_rank", "rank_counted_twice", "stale_rank", "dropped_sample", "dropped_input") and not several:
        fault: Any = drawn.trial.parts.fault
        if found.verdict != kind or found.rank != fault._rank:
            return False
        return not drawn.fault.startswith("dropped_") or drawn.fault == "dropped_rank" or found.sample == fault._sample
    if kind == SCALE and found.verdict == SCALE:
        return close(found.factor, factor_of(drawn))
    return found.verdict == kind or several


def factor_of(drawn: Drawn) -> float:
    """What the fault multiplies by; docs/faults.md."""
    facts = facts_of(drawn.trial)
    size = drawn.trial.world.size
    if drawn.fault == "missing_zero_grad":
        return sum(facts.carries**place for place in range(facts.iteration))
    return float(size) if drawn.fault == "missing_division" else 1 / size


def diagnosed(maker: Maker, diagnoses: Diagnoses, drawn: Drawn) -> Explanation:
    """As a run does it."""
    trial, references = drawn.trial, diagnoses.references
    measured = trial.measure(enter=lambda phase: None)
    shards, key = trial.cut.shards(), f"{drawn.workload}-{drawn.size}-{drawn.chosen['sharding']}"
    if trial.cut.spans_ranks:
        rounding = trial.parts.precision.rounded
        coarse = rounding(torch.ones(())) is not None
        by_precision = f"{key}.{drawn.chosen['precision']}"
        known = Known(
            right=references.shard_wise(key, trial.material, shards),
            full_batch=references.full_batch(key, trial.material),
            rounded=references.shard_wise(by_precision, trial.material, shards, rounding) if coarse else None,
            full_rounded=references.full_batch(by_precision, trial.material, rounding) if coarse else None,
        )
    else:
        known = Known(right=references.own_shard(key, trial.material, shards[trial.world.rank]))
    return diagnoses.of(key, trial, measured.gradient, known)


def rows(world: World, seeds: Sequence[int], kind: str) -> list[dict[str, Any]]:
    """Diagnose a case of each seed; `kind` is fault or clean. Return a row a case."""
    return list(_rows(world, seeds, kind))


def _rows(world: World, seeds: Sequence[int], kind: str) -> Iterator[dict[str, Any]]:
    maker = Maker(world)
    with tempfile.TemporaryDirectory() as folder:
        store = GradientStore(Path(folder), Path(folder))
        diagnoses = Diagnoses(store, References(store, world.control, world.device, 0))
        for seed in seeds:
            drawn = maker.draw(seed, kind)
            with noted(f"{seed} {drawn.workload} {drawn.fault} {drawn.chosen}"):
                found = diagnosed(maker, diagnoses, drawn)
            told = {
                name: value for name, value in asdict(found).items() if name not in ("weights", "noises", "lengths", "ladder")
            }
            told |= {"ladder": [(n, s.share, s.length) for n, s in found.ladder.steps] if found.ladder else []}
            told |= {"replayed": found.ladder.replayed if found.ladder else math.nan}
            told |= {"seed": seed, "workload": drawn.workload, "size": drawn.size, "fault": drawn.fault, **drawn.chosen}
            yield {**told, "world": world.size, "right": is_right(drawn, found)}
