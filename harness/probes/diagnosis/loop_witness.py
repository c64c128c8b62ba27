"""A training step of anyone's own, as the diagnosis asks for it."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.probes.control import Control
from harness.probes.diagnosis.batches import each_tensor, in_float64, length_of, picked, runs, unless_refused
from harness.probes.diagnosis.facts import Facts
from harness.probes.diagnosis.floor import PERMUTATIONS, Local
from harness.probes.diagnosis.own_precision import NATIVE, Way, nearest
from harness.probes.diagnosis.products import projected, summed_over_ranks
from harness.probes.diagnosis.user_step import flat, parameters_of

Loss = Callable[[nn.Module, Any], tuple[Tensor, float]]
"""(model, batch) to the batch's losses, [samples, ...] or their sum, and to how many terms count in it."""
_SAMPLES = 512
"""Samples of all ranks that may have gradients of their own."""
_SAMPLE_BYTES = 1 << 28
"""Memory that those of one rank may take."""
_COUPLED = 1e-9
"""Two float64 gradients of one function are equal to about 1e-15."""


@dataclass
class _Keeping(ABC):
    """The part of a witness that holds vectors in memory."""

    control: Control
    _kept: dict[str, Tensor] = field(default_factory=dict, init=False)

    @abstractmethod
    def summed(self, lag: int = 0) -> Tensor:
        """See Witness."""

    @abstractmethod
    def over_ranks(self, own: Tensor) -> Tensor:
        """The mean over all terms, of what each rank's losses make, on all ranks."""

    def right(self) -> Tensor | None:
        """See Witness."""
        found = self.kept("right", lambda: self.over_ranks(self.summed()))
        return found if self.control.rank == 0 else None

    def kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """See Witness."""
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def blank(self, elements: int) -> Tensor:
        """See Witness."""
        return torch.empty(elements, dtype=torch.float64)


@dataclass
class LoopWitness(_Keeping):
    """See Witness: a model, a loss and a batch on each rank, in float64."""

    model: nn.Module
    loss: Loss
    batches: Sequence[Any]
    accumulation_steps: int
    passes: int = 0
    """Backward passes of a step that were seen."""

    def __post_init__(self) -> None:
        self._exact = copy.deepcopy(self.model).double()
        if not torch.equal(self.summed(), self._gradient(self._exact, self.batches[0])):
            raise ValueError("the model draws numbers in its forward: no two gradients of it are equal")
        terms = [self._shared(self._terms(batch)) for batch in self.batches]
        passes = [runs(len(own), self.accumulation_steps) for own in terms[0]]
        self.facts = Facts(terms, passes, iteration=len(self.batches), carries=0.0)

    def _terms(self, batch: Any) -> list[float]:
        """The terms of each sample; of a batch whose samples cannot be told apart, of all of them together."""
        if not length_of(batch):
            return []
        count = self._count(batch)
        if length_of(batch) > _SAMPLES:
            return [count]
        own = unless_refused(lambda: [self._count(picked(batch, torch.tensor([at]))) for at in range(length_of(batch))])
        return own if own and abs(sum(own) - count) <= 1e-9 * abs(count) else [count]

    @torch.no_grad()
    def _count(self, batch: Any) -> float:
        model = copy.deepcopy(self._exact).eval()  # a batch of one is too few for some normalizations
        return float(self.loss(model, each_tensor(batch, in_float64))[1])

    def _shared(self, own: list[float]) -> list[list[float]]:
        self.control.meet()
        most = torch.tensor(len(own))
        lengths = [int(length) for length in self.control.all_gather(most)]
        padded = torch.zeros(max(lengths), dtype=torch.float64)
        padded[: len(own)] = torch.tensor(own, dtype=torch.float64)
        return [row[:length].tolist() for row, length in zip(self.control.all_gather(padded), lengths, strict=True)]

    def local(self, way: Way, *, spread: float = 1.0) -> Local:
        """This rank's part of the right gradient, computed in this way, once for each of its scales."""
        first, *others = way.scales
        total = self.facts.total or 1.0
        return Local(
            gradient=self.gradient(way, first),
            share=1 / total,
            permuted=self._permuted() if way is NATIVE else iter(()),
            contributions=self._signed(),
            contributed=1 / total,
            samples=length_of(self.batches[0]),
            scaled=(self.gradient(way, scale) for scale in others),
            spread=spread,
            passes=max(self.accumulation_steps, self.passes),
        )

    def nearest(self, found: Sequence[Way], value: Tensor) -> Way:
        """The way of computing whose gradient is nearest to `value`, but for a factor. Equal on all ranks."""
        if len(found) == 1:
            return found[0]
        lefts = []
        for way in found:
            own = unless_refused(partial(self.gradient, way))
            if self.control.any(own is None):
                lefts.append(math.inf)
                continue
            assert own is not None
            lefts.append(projected(value, self.over_ranks(own))[1])
        self.control.meet()
        return nearest(found, self.control.broadcast(torch.tensor(lefts, dtype=torch.float64)).tolist())

    def gradient(self, way: Way, scale: float = 1.0, lag: int = 0) -> Tensor:
        """Gradient of the sum of this rank's losses, in the parameters' order.

        Below float32 the loss is divided by about what all ranks count, as a step does: float16 overflows at 65504. A power of
        two changes no other bit.
        """
        unit = 2.0 ** -round(math.log2(self.facts.total)) if way.dtype and self.facts.total else 1.0
        return self._gradient(self.model, self.batches[lag], way, scale * unit)

    def over_ranks(self, own: Tensor) -> Tensor:
        """The mean over all terms, of what each rank's losses make, on all ranks."""
        return summed_over_ranks(self.control, own, 1 / (self.facts.total or 1.0))

    def _permuted(self) -> Iterator[Sequence[Tensor]]:
        """Gradients of other orders of the samples; none where a place in the batch matters: there it is no null experiment."""
        orders = [
            torch.randperm(length_of(self.batches[0]), generator=torch.Generator().manual_seed(n)) for n in range(PERMUTATIONS)
        ]
        own = self.summed()
        if projected(self._gradient(self._exact, picked(self.batches[0], orders[0])), own)[1] > _COUPLED * float(own.norm()):
            return
        for order in orders:
            yield self._gradient(self.model, picked(self.batches[0], order)).split(
                [p.numel() for p in parameters_of(self.model)]
            )

    def _signed(self) -> Tensor:
        """Gradient of half the samples less the other half: as large as that of samples with random signs."""
        half = torch.randint(0, 2, (length_of(self.batches[0]),), generator=torch.Generator().manual_seed(0)).bool()
        part = picked(self.batches[0], half.nonzero().flatten())
        found = unless_refused(lambda: self._gradient(self._exact, part))
        return self.summed() if found is None else self.summed() - 2 * found

    def _gradient(self, model: nn.Module, batch: Any, way: Way = NATIVE, scale: float = 1.0) -> Tensor:
        """Gradient of the summed loss times `scale`, divided by it. On a copy: a forward may keep statistics."""
        model = way.model(copy.deepcopy(model))
        exact = next(model.parameters()).dtype == torch.float64
        trained = parameters_of(model)
        if not length_of(batch):
            return flat([torch.zeros_like(parameter) for parameter in trained])
        with way.context(trained[0].device):
            losses, _ = self.loss(model, each_tensor(batch, in_float64) if exact else way.batch(batch))
        made = flat(torch.autograd.grad(losses.sum() * scale, trained, allow_unused=True, materialize_grads=True))
        return made if scale == 1 else made.to(torch.promote_types(made.dtype, torch.float32)) / scale

    def summed(self, lag: int = 0) -> Tensor:
        """See Witness."""
        return self.kept(f"summed.{lag}", lambda: self._gradient(self._exact, self.batches[lag]))

    def samples(self) -> Sequence[Tensor]:
        """See Witness."""
        if "samples" not in self._kept:
            rows = bool(length_of(self.batches[0])) and self._in_rows()
            self._kept["samples"] = self._together() if rows else self._apart()
        return list(self._kept["samples"])

    def _in_rows(self) -> bool:
        """True if the loss tells samples apart."""
        with torch.no_grad():
            losses, _ = self.loss(copy.deepcopy(self._exact), each_tensor(self.batches[0], in_float64))
        return losses.dim() > 0 and len(losses) == length_of(self.batches[0])

    def _together(self) -> Tensor:
        """Gradients of each sample's loss in the batch that it is in: [samples, elements]."""
        model = copy.deepcopy(self._exact)
        losses, _ = self.loss(model, each_tensor(self.batches[0], in_float64))
        trained, each = parameters_of(model), losses.reshape(len(losses), -1).sum(1)
        made = [torch.autograd.grad(one, trained, retain_graph=True, allow_unused=True, materialize_grads=True) for one in each]
        return torch.stack([flat(gradient) for gradient in made])

    def _apart(self) -> Tensor:
        """Gradients of every sample in a batch of its own: [samples, elements]."""
        places = range(length_of(self.batches[0]))
        made = [self._gradient(self._exact, picked(self.batches[0], torch.tensor([place]))) for place in places]
        return torch.stack(made) if made else torch.zeros(0, len(self.summed()))

    def without(self, sample: int) -> Tensor:
        """See Witness."""
        left = torch.tensor([place for place in range(length_of(self.batches[0])) if place != sample], dtype=torch.long)
        return self._gradient(self._exact, picked(self.batches[0], left))

    def apart(self) -> Tensor:
        """See Witness."""
        return self._apart().sum(0)

    def sample_limit(self) -> int:
        """See Witness: none where samples cannot be told apart, or where each depends on the others."""
        return 0 if self.control.any(not self._separable()) else _SAMPLES

    def _separable(self) -> bool:
        """True if the samples' gradients can be had, and add up to the batch's."""
        own = self.facts.terms[0][self.control.rank]
        if len(own) != length_of(self.batches[0]) or 8 * len(own) * len(self.summed()) > _SAMPLE_BYTES:
            return False
        parts = unless_refused(self.samples)
        if not parts:
            return parts is not None
        return projected(sum(parts[1:], parts[0]), self.summed())[1] <= _COUPLED * float(self.summed().norm())


@dataclass
class OwnPrecisionWitness(_Keeping):
    """See Witness: the same, in the precision of the step, whose rounding in forward it shares. Ranks only, no samples.

    Its gradients are means over the scales of `way`.
    """

    loop: LoopWitness
    way: Way

    @property
    def facts(self) -> Facts:
        """See Witness."""
        return self.loop.facts

    def over_ranks(self, own: Tensor) -> Tensor:
        """See LoopWitness."""
        return self.loop.over_ranks(own)

    def summed(self, lag: int = 0) -> Tensor:
        """See Witness."""
        return self.kept(f"summed.{lag}", lambda: self._mean(lag))

    def _mean(self, lag: int) -> Tensor:
        first, *others = self.way.scales
        total = self.loop.gradient(self.way, first, lag).double()
        for scale in others:
            total += self.loop.gradient(self.way, scale, lag)
        return total / len(self.way.scales)

    def local(self) -> Local:
        """This rank's part, with its distance from the mean as that of another gradient of the same kind."""
        count = len(self.way.scales)
        return self.loop.local(self.way, spread=math.sqrt((count + 1) / (count - 1)))

    def samples(self) -> Sequence[Tensor]:
        """See Witness."""
        raise NotImplementedError

    def without(self, sample: int) -> Tensor:
        """See Witness."""
        raise NotImplementedError

    def apart(self) -> Tensor:
        """See Witness."""
        raise NotImplementedError

    def sample_limit(self) -> int:
        """See Witness."""
        return 0
