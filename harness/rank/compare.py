"""A case's gradient held against the references, the other reductions of its setting, and the other ranks."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.numerics.discrepancy import Discrepancy as Sums
from harness.numerics.discrepancy import compare_all
from harness.probes.control import Control
from harness.rank.agreement import together
from harness.rank.counterfactuals import Known
from harness.rank.gradient_store import GradientStore
from harness.rank.norms import norms
from harness.rank.reference import References, Rounding
from harness.rank.theory import expected, ideal
from harness.rank.trial import Trial
from harness.schema.case import USUAL, Baseline, Case, Reference, kept_in
from harness.schema.record import (
    CASE,
    FULL_BATCH,
    PREDICTED,
    RANK_0,
    REFERENCE,
    ROUNDED,
    SINGLE_RANK,
    Discrepancy,
    Norm,
)

SHARDS, FULL = kept_in(Reference.SHARD_WISE), kept_in(Reference.FULL_BATCH)
"""Axes that a float64 reference depends on."""
Gradient = Iterable[tuple[str, Tensor]]
Row = tuple[str, tuple[float, ...]]
"""(parameter, metrics); the first row of a comparison is the whole gradient's, its parameter empty."""


@dataclass(frozen=True)
class Yardsticks:
    """Names, in the store, of the float64 gradients that a case is held against."""

    reference: str
    full_batch: str | None
    """None where a rank's own shard is all there is."""
    predicted: str | None
    """None where theory expects the reference."""
    rounded: str | None
    """The reference of the parameters as the case's precision rounds them; None where it does not."""
    single_rank: str | None = None
    """Rank 0's gradient of the whole batch, computed as the case does but for the aggregation; None where not asked for."""


@dataclass(frozen=True)
class Apart:
    """Distances between yardsticks."""

    references: Sums | None = None
    """`reference` from `reference:full_batch`."""
    predicted: Sums | None = None
    """The prediction from `reference`."""


@dataclass(frozen=True)
class Compared:
    """Results of a case's comparisons, on rank 0."""

    rows: list[Discrepancy]
    norms: list[Norm]
    """Norms of rank 0's gradient and of its reference: the whole gradient first, then each group of parameters."""
    reference_loss: float


@dataclass
class Comparisons:
    """All comparisons of a run. All ranks call alike; rank 0 gets the rows."""

    control: Control
    store: GradientStore
    references: References
    single_rank: bool = False
    """Whether cases are held against what rank 0 computes alone, too."""
    order: Mapping[Case, int] = field(default_factory=dict)
    """All cases of the launch, to their places in it."""
    held: frozenset[tuple[str, str]] = frozenset()
    """(case_id, case_id) of cases whose rows say already how far the one is from the other."""
    together: bool = True
    """Whether the reductions of a setting stand together, so that an earlier setting's gradients are done with."""
    _singles: set[str] = field(default_factory=set)
    earlier: dict[Case, list[Case]] = field(default_factory=lambda: defaultdict(list))
    """Cases whose gradients wait, by setting."""

    def yardsticks(self, case: Case, trial: Trial) -> Yardsticks:
        """Compute what the case is held against, where it is the first to need it. Raises CaseFailedError."""
        coarse = trial.parts.precision.rounded(torch.ones(())) is not None
        found = Yardsticks(
            reference=self._reference(case, trial),
            full_batch=self._full_batch(case, trial) if trial.cut.spans_ranks else None,
            predicted=self._prediction(case, trial),
            rounded=self._reference(case, trial, trial.parts.precision.rounded) if coarse else None,
            single_rank=self._single_rank(case, trial) if self.single_rank and trial.cut.spans_ranks else None,
        )
        return found if case.clip == USUAL["clip"] else self._clipped(found, case, trial)

    def known(self, case: Case, trial: Trial) -> Known:
        """The float64 gradients on the way to a case, none of them clipped. Raises CaseFailedError."""
        spans, precision = trial.cut.spans_ranks, trial.parts.precision
        rounding: Rounding | None = precision.rounded if precision.rounded(torch.ones(())) is not None else None
        return Known(
            right=self._reference(case, trial),
            full_batch=self._full_batch(case, trial) if spans else None,
            rounded=self._reference(case, trial, rounding) if rounding is not None else None,
            full_rounded=self._full_batch(case, trial, rounding) if rounding is not None and spans else None,
        )

    def _clipped(self, found: Yardsticks, case: Case, trial: Trial) -> Yardsticks:
        """Every float64 gradient as the case's clipping leaves it; `single_rank` is clipped already."""
        alone = not trial.cut.spans_ranks

        def short(name: str | None, *, everywhere: bool = alone) -> str | None:
            factor = trial.parts.clip.factor
            return name and self.references.shortened(name, case.key(["clip"]), factor, everywhere=everywhere)

        return replace(
            found,
            reference=short(found.reference) or found.reference,
            full_batch=short(found.full_batch),
            predicted=short(found.predicted, everywhere=alone or trial.parts.fault.leaves_own),
            rounded=short(found.rounded),
        )

    def _reference(self, case: Case, trial: Trial, rounding: Rounding | None = None) -> str:
        """As the case's samples meet: rank by rank, or all of them; or this rank's own, where nothing is summed."""
        key = _rounded(case.key(SHARDS), case, rounding)
        if not trial.cut.spans_ranks:
            return self.references.own_shard(key, trial.material, trial.cut.shards()[self.control.rank], rounding)
        if trial.parts.batchnorm.synced:
            return self._full_batch(case, trial, rounding)
        return self.references.shard_wise(key, trial.material, trial.cut.shards(), rounding)

    def _full_batch(self, case: Case, trial: Trial, rounding: Rounding | None = None) -> str:
        return self.references.full_batch(_rounded(case.key(FULL), case, rounding), trial.material, rounding)

    def _single_rank(self, case: Case, trial: Trial) -> str | None:
        """Computed once for all cases that share this baseline."""
        alone = trial.alone()
        if alone.skip_reason():
            return None
        name = f"single_rank.{case.key(kept_in(Baseline.ONE_RANK))}"
        if name not in self._singles:
            measured = together(self.control, lambda: alone.measure(_unseen) if self.control.rank == 0 else None)
            if measured is not None:
                self.store.save(name, measured.gradient)
            self._singles.add(name)
        return name

    def between(self, yardsticks: Yardsticks) -> Apart:
        """How far apart the yardsticks are. On rank 0; nowhere else does it mean anything. Raises CaseFailedError."""
        return together(self.control, lambda: self._between(yardsticks) if self.control.rank == 0 else Apart())

    def _between(self, yardsticks: Yardsticks) -> Apart:
        reference, full_batch, predicted = yardsticks.reference, yardsticks.full_batch, yardsticks.predicted
        return Apart(
            references=self._apart(reference, full_batch) if full_batch else None,
            predicted=self._apart(predicted, reference) if predicted else None,
        )

    def of(self, case: Case, trial: Trial, gradient: list[tuple[str, Tensor]], yardsticks: Yardsticks) -> Compared:
        """Every comparison of a case that has just been measured. Raises CaseFailedError, as where memory runs out."""
        everywhere, on_rank_0 = self._sorted_out(trial, yardsticks)
        here = everywhere | (on_rank_0 if self.control.rank == 0 else {})
        sums = together(
            self.control, lambda: {against: compare_all(gradient, self.store.load(name)) for against, name in here.items()}
        )
        found = {against: _in_rows(*of_one) for against, of_one in sums.items()}
        rows = [row for against in everywhere for row in self._gathered(case, against, found[against])]
        rows += [row for against in here if against in on_rank_0 for row in _records(case, 0, against, found[against])]
        rows += self._with_rank_0(case, gradient) if trial.cut.spans_ranks else []
        rows += together(self.control, lambda: self._with_earlier(case, gradient))
        return Compared(
            rows=rows,
            norms=norms(case.case_id, *sums[REFERENCE]) if self.control.rank == 0 else [],
            reference_loss=self.references.loss(yardsticks.reference),
        )

    def _sorted_out(self, trial: Trial, yardsticks: Yardsticks) -> tuple[dict[str, str], dict[str, str]]:
        """`against` to name: what every rank has one of its own of, and what rank 0 alone has."""
        names = {
            REFERENCE: yardsticks.reference,
            FULL_BATCH: yardsticks.full_batch,
            PREDICTED: yardsticks.predicted,
            ROUNDED: yardsticks.rounded,
            SINGLE_RANK: yardsticks.single_rank,
        }
        own = set() if trial.cut.spans_ranks else set(names)
        if trial.parts.fault.leaves_own:
            own.add(PREDICTED)
        known = {against: name for against, name in names.items() if name}
        return (
            {against: name for against, name in known.items() if against in own},
            {against: name for against, name in known.items() if against not in own},
        )

    def _prediction(self, case: Case, trial: Trial) -> str | None:
        """The gradient that theory expects where it is not the reference; cases that expect the same share it."""
        shares = expected(trial.cut, trial.iterations)
        if shares is None or (not trial.parts.fault.leaves_own and shares == ideal(trial.cut)):
            return None
        over_ranks = trial.cut.spans_ranks and not trial.parts.fault.leaves_own
        share = shares[self.control.rank]
        shard = trial.cut.shards(share.lag)[self.control.rank]
        entering = [(index, weight) for index, weight in zip(shard, share.weights, strict=True) if weight is not None]
        batch = trial.material.batches[share.lag][torch.tensor([index for index, _ in entering], dtype=torch.long)]
        key = f"{case.key(SHARDS)}.{hashlib.sha256(repr((shares, over_ranks)).encode()).hexdigest()}"
        weights = [weight for _, weight in entering]
        return self.references.weighted(key, trial.material, batch, weights, over_ranks=over_ranks)

    def _apart(self, value: str, against: str) -> Sums:
        whole, _ = compare_all(self.store.load(value), self.store.load(against))
        return whole

    def _with_rank_0(self, case: Case, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        """All ranks must hold the same bits. Parameters are listed for the ranks that do not."""
        rows = self._gathered(case, RANK_0, together(self.control, lambda: _rows(gradient, self._rank_0s(gradient))))
        unequal = {row.rank for row in rows if not row.bitwise_equal}
        return [row for row in rows if row.rank in unequal or (row.rank != 0 and row.parameter == "")]

    def _rank_0s(self, gradient: Gradient) -> Gradient:
        """Rank 0's, one parameter after the other."""
        for name, tensor in gradient:
            buffer = tensor.clone(memory_format=torch.contiguous_format)
            self.control.meet()  # a rank without the memory for it says so here
            yield name, self.control.broadcast(buffer)

    def _with_earlier(self, case: Case, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        if self.control.rank != 0:
            return []
        rows = [row for other in self.earlier[case.setting] for row in self._with_another(case, other, gradient)]
        self.keep(case, gradient)
        return rows

    def keep(self, case: Case, gradient: list[tuple[str, Tensor]]) -> None:
        """For the cases of the same setting that come after it. On rank 0."""
        self.store.save(case.case_id, gradient)
        if self.together:
            self._forget_other_settings(case)
        self.earlier[case.setting].append(case)

    def _with_another(self, case: Case, other: Case, gradient: list[tuple[str, Tensor]]) -> list[Discrepancy]:
        """The later one in the launch's order is held against the earlier: when a run goes on, that may be the other one."""
        theirs = self.store.load(other.case_id)
        if (other.case_id, case.case_id) in self.held:
            return []
        if self.order[other] > self.order[case]:
            return _records(other, 0, f"{CASE}{case.case_id}", _rows(theirs, gradient))
        return _records(case, 0, f"{CASE}{other.case_id}", _rows(gradient, theirs))

    def _forget_other_settings(self, case: Case) -> None:
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
    return [Discrepancy.of(case.case_id, rank, against, parameter, metrics) for parameter, metrics in rows]


def _rows(value: Gradient, against: Gradient) -> list[Row]:
    return _in_rows(*compare_all(value, against))


def _in_rows(whole: Sums, parameters: Mapping[str, Sums]) -> list[Row]:
    return [("", whole.metrics()), *((name, found.metrics()) for name, found in parameters.items())]


def _rounded(key: str, case: Case, rounding: Rounding | None) -> str:
    return f"{key}.rounded.{case.key(['precision'])}" if rounding else key


def _unseen(phase: str) -> None:
    """What is computed to compare with is no phase of the case."""
