"""Faults under reductions and normalizations, in float64, against their closed forms by hand.

The theory here is this file's own, and shares nothing with the faults'.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.rank.material import prepare
from harness.rank.process_group import World
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.options import make, parts_of
from tests.worlds.closed_form import WORKLOADS, sum_of_gradients
from tests.worlds.serve import noted

SIZE, ITERATION = 13, 3
"""13 samples are cut unevenly by 2, 3 and 4; results are those of iteration 3."""
BY_SAMPLE = ("none", "one_by_one", "one_by_one_forward")
IN_PLACE = (*BY_SAMPLE, "sum_then_divide")
"""Modes that divide `.grad`, with whatever is left in it."""
RACING = "read_before_wait"
AGGREGATIONS, AVERAGED = ("all_reduce", "all_reduce_avg"), ("mean", "none")
"""One that sums and one that averages; the latter under two reductions."""
IN_DIVISION = ("missing_division", "missing_all_reduce", "read_before_wait")
"""Nothing that an averaging all-reduce could do wrong."""


class Theory:
    """Gradients as vectors: `each[lag][rank][sample]`, not divided, and what they count."""

    def __init__(self, name: str, trial: Trial, reduction: str, normalization: str, averages: bool) -> None:
        self.reduction, self.mean_of_means, self.averages = reduction, normalization == "rank_mean", averages
        shards, material = [trial.cut.shards(0), trial.cut.shards(1)], trial.material
        found = [[[sum_of_gradients(name, material, [i], lag) for i in s] for s in cut] for lag, cut in enumerate(shards)]
        self.each = [[[torch.cat([w.flatten(), b.flatten()]) for w, b, _ in own] for own in cut] for cut in found]
        self.count = [[[float(count) for _, _, count in own] for own in cut] for cut in found]
        self.size = len(shards[0])

    def own(self, rank: int, lag: int = 0, *, less: float = 0.0) -> tuple[Tensor, float]:
        """A rank's summed gradient, and what it is divided by before the sum over ranks; `less` is not counted."""
        counts = self.count[lag]
        n = (sum(counts[rank]) if self.mean_of_means else sum(map(sum, counts))) - less
        return sum(self.each[lag][rank]), n / self.size if self.averages and not self.mean_of_means else n

    def right(self) -> Tensor:
        return self.over_ranks([g / n for g, n in map(self.own, range(self.size))])

    def over_ranks(self, local: list[Tensor]) -> Tensor:
        return sum(local) / (self.size if self.mean_of_means or self.averages else 1)

    def passes(self, rank: int) -> list[list[int]]:
        samples = list(range(len(self.each[0][rank])))
        if self.reduction in BY_SAMPLE:
            return [[i] for i in samples]
        if self.reduction == "micro_batch":
            parts = [samples[i : i + 4] for i in range(0, len(samples), 4)]
            return [part for part in parts if sum(self.count[0][rank][i] for i in part)]
        return [samples]

    def alias(self, rank: int) -> Tensor:
        """The first pass lost, the second twice."""
        local = []
        for r in range(self.size):
            g, n = self.own(r)
            first, *others = [sum(self.each[0][r][i] for i in part) for part in self.passes(r)]
            local.append((g + others[0] - first if others else g) / n)
        return self.over_ranks(local)

    def missing_zero_grad(self, rank: int) -> Tensor:
        """Iteration by iteration."""
        result = torch.zeros_like(self.each[0][0][0])
        for _ in range(ITERATION):
            local = []
            for g, n in map(self.own, range(self.size)):
                kept = {"per_sample_vmap": 0.0}.get(self.reduction, 1 / n if self.reduction in IN_PLACE else 1.0)
                local.append(g / n + kept * result)
            result = self.over_ranks(local)
        if self.reduction in ("sum", "mean", "none_vector", "micro_batch"):
            factor = ITERATION if self.mean_of_means or self.averages else sum(self.size**j for j in range(ITERATION))
            assert torch.allclose(result, factor * self.right(), rtol=1e-13)
        return result

    def double_division(self, rank: int) -> Tensor:
        return self.right() / self.size

    def missing_division(self, rank: int) -> Tensor:
        return self.right() * self.size

    def _one_sample(self, counted: bool) -> Tensor:
        less = 0.0 if counted else self.count[0][0][0]
        local = []
        for r in range(self.size):
            g, n = self.own(r, less=less if r == 0 or not self.mean_of_means else 0.0)
            local.append((g - self.each[0][0][0] if r == 0 else g) / n)
        return self.over_ranks(local)

    def dropped_sample(self, rank: int) -> Tensor:
        return self._one_sample(counted=True)

    def dropped_input(self, rank: int) -> Tensor:
        return self._one_sample(counted=False)

    def _rank_0(self, replaced: Tensor) -> Tensor:
        return self.over_ranks([replaced, *(g / n for g, n in map(self.own, range(1, self.size)))])

    def dropped_rank(self, rank: int) -> Tensor:
        return self._rank_0(0 * self.each[0][0][0])

    def rank_counted_twice(self, rank: int) -> Tensor:
        g, n = self.own(0)
        return self._rank_0(2 * g / n)

    def stale_rank(self, rank: int) -> Tensor:
        g, n = self.own(0, lag=1)
        return self._rank_0(g / n)

    def missing_all_reduce(self, rank: int) -> Tensor:
        g, n = self.own(rank)
        return g / n / (self.size if self.mean_of_means else 1)

    read_before_wait = missing_all_reduce

    def none(self, rank: int) -> Tensor:
        return self.right()


def in_division(fault: str, aggregation: str) -> bool:
    """Return whether the fault is one that the aggregation, which averages, cannot have."""
    return aggregation == "all_reduce_avg" and fault in IN_DIVISION


def errors(world: World, workload: str, cells: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    """Run each cell (reduction, normalization, fault, aggregation); those of `in_division` must be skipped.

    Return {cell: [largest error of any rank, over the largest element of the true gradient; the distance of the closed form
    from the gradient without the fault, likewise]}.
    """
    options = {axis: make(axis) for axis in AXES if axis != "workload"}
    material = prepare(WORKLOADS[workload], workload, 0, SIZE, batches=2)
    found = dict[str, list[float]]()
    for cell in cells:
        reduction, normalization, fault, aggregation = cell
        chosen = {"reduction": reduction, "normalization": normalization, "aggregation": aggregation, "fault": fault}
        parts = parts_of(options, WORKLOADS[workload], **chosen)
        trial = Trial(parts, material, world, asked_warm_up=1, measured=ITERATION - 1)
        if in_division(fault, aggregation):
            assert "averages by itself" in str(trial.skip_reason()), cell
            continue
        assert trial.skip_reason() is None, (cell, trial.skip_reason())
        with noted(" ".join(cell)):
            gradient = torch.cat([g.flatten() for _, g in trial.measure(enter=lambda phase: None).gradient])
        theory = Theory(workload, trial, reduction, normalization, aggregation == "all_reduce_avg")
        truth, right = getattr(theory, fault)(world.rank), theory.right()
        if fault == RACING and world.rank:
            truth = gradient  # what a late rank reads is a race
        found[" ".join(cell)] = [float((x - truth).abs().max() / right.abs().max()) for x in (gradient, right)]
    own = torch.tensor(list(found.values()), dtype=torch.float64).reshape(-1, 2)
    return dict(zip(found, torch.stack(world.control.all_gather(own)).amax(0).tolist(), strict=True))
