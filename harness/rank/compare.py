"""A case's gradient held against the references, the other reductions of its setting, and the other ranks."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.numerics.discrepancy import Discrepancy as Sums
from harness.numerics.discrepancy import compare
from harness.rank.control import Control
from harness.rank.gradient_store import GradientStore
from harness.rank.reference import References
from harness.rank.trial import Trial
from harness.schema.case import Case
from harness.schema.record import CASE, FULL_BATCH, METRICS, RANK_0, REFERENCE, Discrepancy

Gradient = Iterable[tuple[str, Tensor]]
Row = tuple[str, tuple[float, ...]]
"""(parameter, metrics); the first row of a comparison is the whole gradient's, its parameter empty."""


@dataclass
class Comparisons:
    """All comparisons of a run. All ranks call alike; rank 0 gets the rows."""

    control: Control
    store: GradientStore
    references: References
    earlier: dict[Case, list[Case]] = field(default_factory=lambda: defaultdict(list))
    """Cases whose gradients wait, by setting."""

    def of(self, case: Case, trial: Trial, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        """Every comparison of a case that has just been measured."""
        if trial.parts.aggregation.spans_ranks:
            rows = self._with_references(case, trial, gradient) + self._with_rank_0(case, gradient)
        else:
            rows = self._with_own_shard(case, trial, gradient)
        return rows + self._with_earlier(case, gradient)

    def between_references(self, case: Case, trial: Trial) -> float:
        """Compute what the case is held against, where it is the first to need it.

        Returns the relative L2 of `reference` from `reference:full_batch`, on rank 0; 0 elsewhere, and for a rank's own shard.
        """
        if not trial.parts.aggregation.spans_ranks:
            self._own_shard(case, trial)
            return 0.0
        shard_wise, full_batch = self._names(case, trial)
        if self.control.rank != 0:
            return 0.0
        whole, _ = _compare(self.store.load(shard_wise), self.store.load(full_batch))
        return whole.relative_l2

    def _names(self, case: Case, trial: Trial) -> tuple[str, str]:
        workload = _key(case, "workload")
        sharded = f"{workload}.{_key(case, 'sharding')}"
        shard_wise = self.references.shard_wise(sharded, trial.material, trial.shards)
        return shard_wise, self.references.full_batch(workload, trial.material)

    def _with_references(self, case: Case, trial: Trial, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        names = self._names(case, trial)
        if self.control.rank != 0:
            return []
        return [
            row
            for against, name in zip((REFERENCE, FULL_BATCH), names, strict=True)
            for row in _records(case, 0, against, _rows(gradient, self.store.load(name)))
        ]

    def _with_own_shard(self, case: Case, trial: Trial, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        return self._gathered(case, REFERENCE, _rows(gradient, self.store.load(self._own_shard(case, trial))))

    def _own_shard(self, case: Case, trial: Trial) -> str:
        key = f"{_key(case, 'workload')}.{_key(case, 'sharding')}"
        return self.references.own_shard(key, trial.material, trial.shards[self.control.rank])

    def _with_rank_0(self, case: Case, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        """All ranks must hold the same bits. Parameters are listed for the ranks that do not."""
        rank_0 = (
            (name, self.control.broadcast(tensor.clone(memory_format=torch.contiguous_format))) for name, tensor in gradient
        )
        rows = self._gathered(case, RANK_0, _rows(gradient, rank_0))
        unequal = {row.rank for row in rows if not row.metrics[METRICS.index("bitwise_equal")]}
        return [row for row in rows if row.rank in unequal or (row.rank != 0 and row.parameter == "")]

    def _with_earlier(self, case: Case, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        if self.control.rank != 0:
            return []
        others = self.earlier[case.setting]
        rows = [
            row
            for other in others
            for row in _records(case, 0, f"{CASE}{other.case_id}", _rows(gradient, self.store.load(other.case_id)))
        ]
        self.store.save(case.case_id, gradient)
        self._forget_other_settings(case)
        others.append(case)
        return rows

    def _forget_other_settings(self, case: Case) -> None:
        """Reductions of one setting stand together in the run, so an earlier setting's gradients are done with."""
        for setting in [setting for setting in self.earlier if setting != case.setting]:
            self.store.drop(done.case_id for done in self.earlier.pop(setting))

    def _gathered(self, case: Case, against: str, rows: list[Row]) -> list[Discrepancy]:
        """Every rank's own rows, on rank 0."""
        numbers = torch.tensor([metrics for _, metrics in rows], dtype=torch.float64)
        names = [parameter for parameter, _ in rows]
        return [
            record
            for rank, theirs in enumerate(self.control.gather(numbers))
            for record in _records(case, rank, against, list(zip(names, map(tuple, theirs.tolist()), strict=True)))
        ]


def _records(case: Case, rank: int, against: str, rows: list[Row]) -> list[Discrepancy]:
    return [Discrepancy(case.case_id, rank, against, parameter, metrics) for parameter, metrics in rows]


def _rows(value: Gradient, against: Gradient) -> list[Row]:
    whole, parameters = _compare(value, against)
    return [("", whole.metrics()), *((name, found.metrics()) for name, found in parameters.items())]


def _compare(value: Gradient, against: Gradient) -> tuple[Sums, dict[str, Sums]]:
    """The whole gradient is the sum of its parameters: both come from one read."""
    parameters = {name: compare(one, other) for (name, one), (_, other) in zip(value, against, strict=True)}
    return sum(parameters.values(), Sums()), parameters


def _key(case: Case, axis: str) -> str:
    """An axis's option and its parameters, as part of a reference's name."""
    own = [f"{key}={value}" for key, value in case.parameters if key.startswith(f"{axis}.")]
    return "-".join([case.options[axis], *own])
