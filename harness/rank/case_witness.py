"""A case as the diagnosis asks for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.probes.control import Control
from harness.probes.diagnosis.explain import Seen
from harness.probes.diagnosis.facts import Facts
from harness.probes.diagnosis.floor import PERMUTATIONS, Local
from harness.rank.counterfactuals import SOUND
from harness.rank.gradient_store import Flats, GradientStore
from harness.rank.regressors import Regressors
from harness.rank.tap import LOCAL, UNCLIPPED
from harness.rank.theory import situation
from harness.rank.trial import Trial
from harness.rank.variants import permuted

EXACT = "exact."
"""Before the names of what was seen of the case in float64."""
_SAMPLES = 512
"""Samples of all ranks that may have gradients of their own: their Gram matrix has 2 MiB."""
_SAMPLE_BYTES = 1 << 30
"""What those of one rank may take on disk."""


@dataclass(frozen=True)
class CaseWitness:
    """See diagnosis.witness.Witness. `flats` holds what taps saw of the case, and of it in float64."""

    trial: Trial
    regressors: Regressors
    flats: Flats
    store: GradientStore
    right_name: str
    """Of the reference, in `store`."""
    share: float
    """What a sound local gradient is multiplied by in the right result."""

    @property
    def control(self) -> Control:
        """Of the ranks that are summed."""
        world = self.trial.world
        return world.control if self.trial.cut.spans_ranks else world.alone().control

    @property
    def facts(self) -> Facts:
        """See Witness."""
        return facts_of(self.trial)

    def seen(self, repeats: bool, sizes: Sequence[int]) -> Seen:
        """What is to be explained."""
        aggregation = self.trial.parts.aggregation
        return Seen(
            value=self.flats.load(UNCLIPPED),
            repeats=repeats,
            local=self._local(),
            sizes=sizes,
            coarsest=coarsest(self.trial),
            travels=coarsest(self.trial),
            exact=self.flats.load(EXACT + UNCLIPPED),
            exact_local=self.flats.load(EXACT + LOCAL),
            sent=aggregation.sends,
            lossy=aggregation.lossy,
        )

    def _local(self) -> Local:
        own = self.facts.terms[0][self.control.rank]
        return Local(
            gradient=self.flats.load(SOUND),
            share=self.share,
            permuted=self._permuted(),
            contributions=self.regressors.signed(0),
            contributed=1 / (self.facts.total or 1.0),
            samples=len(own),
            passes=max(map(len, self.facts.passes)),
        )

    def _permuted(self) -> Iterator[list[Tensor]]:
        """None where a sample's place in the batch decides what is drawn for it: there a permutation is another function."""
        for seed in range(PERMUTATIONS) if "dropout" not in self.trial.material.coupling else ():
            yield self.trial.once(permuted(self.trial.parts, seed)).gradient()

    def right(self) -> Tensor | None:
        """See Witness."""
        return self.store.flat(self.right_name) if self.control.rank == 0 else None

    def summed(self, lag: int = 0) -> Tensor:
        """See Witness."""
        return self.regressors.summed(lag)

    def samples(self) -> Sequence[Tensor]:
        """See Witness."""
        return self.regressors.samples()

    def without(self, sample: int) -> Tensor:
        """See Witness."""
        return self.regressors.without(sample)

    def apart(self) -> Tensor:
        """See Witness."""
        return self.regressors.apart()

    def kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """See Witness."""
        return self.regressors.flats.once(name, lambda: [compute()])

    def blank(self, elements: int) -> Tensor:
        """See Witness."""
        return self.flats.blank("rest", elements)

    def sample_limit(self) -> int:
        """See Witness."""
        most = max(map(len, self.facts.terms[0]))
        return _SAMPLES if 8 * most * len(self.flats.load(UNCLIPPED)) <= _SAMPLE_BYTES else 0


def facts_of(trial: Trial) -> Facts:
    """What the case is meant to do. Where nothing is summed over ranks, this rank is a world of its own."""
    cut, parts, rank = trial.cut, trial.parts, trial.world.rank
    told = situation(cut, trial.iterations)
    ranks = slice(None) if cut.spans_ranks else slice(rank, rank + 1)
    return Facts(
        terms=[of_lag[ranks] for of_lag in told.terms],
        passes=told.passes[ranks],
        by_rank=cut.spans_ranks and parts.normalization.divisor(cut.world_size) > 1,
        iteration=trial.iterations,
        carries=told.carries[rank],
        coupled=bool(trial.material.coupling),
    )


def coarsest(trial: Trial) -> torch.dtype:
    """In which any number of the case is rounded."""
    precision, sends = trial.parts.precision, (trial.parts.communication.dtype, trial.parts.aggregation.sends)
    dtypes = [precision.parameter_dtype, precision.autocast_dtype, *sends]
    return max((dtype for dtype in dtypes if dtype), key=lambda dtype: torch.finfo(dtype).eps)
