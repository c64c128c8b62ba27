"""Diagnosis of a case: what is run once more to find out why its gradient is not its reference."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter

import torch
from torch import Tensor

from harness.probes.control import Control
from harness.probes.diagnosis.explain import Explanation, explain, with_ladder
from harness.probes.diagnosis.ladder import climb
from harness.rank.case_witness import EXACT, CaseWitness
from harness.rank.counterfactuals import Counterfactuals, Known, keep_sound
from harness.rank.gradient_store import Flats, GradientStore
from harness.rank.reference import References
from harness.rank.regressors import Regressors
from harness.rank.tap import LOCAL, RESULT
from harness.rank.trial import Trial
from harness.rank.variants import in_float64, quiet
from harness.schema.record import CLEAN, Weight
from harness.tensors.bits import bits


@dataclass
class Diagnoses:
    """Of all cases of a run, one after the other. All ranks call alike."""

    store: GradientStore
    references: References
    _regressors: dict[str, Regressors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._flats = Flats(self.store, "diagnosis.")
        self._counterfactuals = Counterfactuals(self.store)

    def of(self, key: str, trial: Trial, measured: Sequence[tuple[str, Tensor]], known: Known) -> Explanation:
        """Why a case's gradient, `measured`, is not its reference. Raises what a case may raise.

        key: of the workload and the cut. The ladder, the noises and the lengths are rank 0's.
        """
        started = perf_counter()
        self._flats.clear()
        tap = trial.tapped(self._flats.save)
        sizes = [tensor.numel() for _, tensor in measured]
        again = self._flats.load(RESULT).split(sizes)
        repeats = all(_same_bits(one, other) for (_, one), other in zip(measured, again, strict=True))
        began = perf_counter()
        run_in_float64(trial, self._flats)
        exact_seconds = perf_counter() - began
        share = keep_sound(trial, self._flats)
        witness = CaseWitness(trial, self._regressors_of(key, trial), self._flats, self.store, known.right, share)
        found = explain(witness, witness.seen(repeats, sizes))
        ladder = climb(witness.control, self._counterfactuals.rungs(trial, tap, self._flats, known, share))
        found = with_ladder(found, ladder)
        if not trial.cut.spans_ranks:
            found = _worst(trial.world.control, found)
        return replace(found, seconds=perf_counter() - started - exact_seconds, exact_seconds=exact_seconds)

    def forget(self) -> None:
        """What has been kept, on all ranks: after a failure they may not hold the same."""
        for regressors in self._regressors.values():
            regressors.flats.clear()

    def _regressors_of(self, key: str, trial: Trial) -> Regressors:
        lags = trial.parts.fault.batches
        name = f"{key}.{lags}.{trial.cut.spans_ranks}."  # their Gram matrices are of as many batches, and of these ranks
        if name not in self._regressors:
            shards = [trial.cut.shards(lag)[trial.world.rank] for lag in range(lags)]
            self._regressors[name] = Regressors(Flats(self.store, name), self.references, trial.material, shards)
        return self._regressors[name]


def run_in_float64(trial: Trial, flats: Flats) -> None:
    """The case, and what each rank brings to its sum."""
    exact = replace(trial, parts=in_float64(trial.parts), exposed=False, queued=False)
    exact.tapped(lambda name, gradient: flats.save(EXACT + name, gradient))
    if trial.parts.aggregation.in_backward:
        flats.save(EXACT + LOCAL, exact.once(quiet(exact.parts)).gradient())


def _worst(control: Control, own: Explanation) -> Explanation:
    """Of ranks that are worlds of their own: the first that something is wrong with, or rank 0's."""
    control.meet()
    told = control.all_gather_text(json.dumps(asdict(replace(own, noises=(), lengths=(), ladder=None))))
    found = [Explanation(**{**one, "weights": tuple(Weight(**w) for w in one["weights"])}) for one in map(json.loads, told)]
    rank = next((rank for rank, one in enumerate(found) if one.verdict not in CLEAN), 0)
    if not rank:
        return own
    words = f"rank {rank}, which sums with nobody, and is rank 0 of its own world: {found[rank].statement}"
    weights = tuple(replace(weight, rank=rank) for weight in found[rank].weights)
    return replace(found[rank], statement=words, rank=rank, weights=weights)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(bits(one), bits(other))
