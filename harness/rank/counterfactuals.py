"""Counterfactuals: what a case's ladder is made of, and its sum over ranks, ready to be made again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from harness.axes.aggregation.base import Exchange
from harness.axes.clip.base import Clip
from harness.axes.fault.base import Fault
from harness.probes.control import Control
from harness.probes.diagnosis.ladder import COUPLING, KERNELS, PARAMETERS, Rungs, Summed, places_of, snapped
from harness.probes.diagnosis.products import projected
from harness.probes.order import Chunk, reveal, unsupported
from harness.rank.gradient_store import Flats, GradientStore
from harness.rank.rig import Cut
from harness.rank.tap import HANDED, LOCAL, SUMMED, UNCLIPPED, Tap
from harness.rank.trial import Trial
from harness.rank.variants import quiet, sound

MOST_RANKS = 32
"""Whose order is revealed: it takes W (W - 1) sums of the gradient."""
SOUND, BROUGHT = "sound", "brought"
PIECE = 1 << 17
"""Elements that are looked at at a time."""


@dataclass(frozen=True)
class Known:
    """Names, in the store, of the float64 gradients on the way to a case; on rank 0, or on each rank that is its own world."""

    right: str
    """As the case's samples meet."""
    full_batch: str | None = None
    """None where a rank's own batch is all there is."""
    rounded: str | None = None
    """`right`, of the parameters and inputs as the case's precision rounds them; None where it does not."""
    full_rounded: str | None = None
    """`full_batch` likewise."""


def keep_sound(trial: Trial, flats: Flats) -> float:
    """Keep this rank's local gradient as it should be; what it is multiplied by in the right result."""
    parts = sound(trial.parts)
    flats.save(SOUND, trial.once(parts).gradient())
    cut = Cut(parts, trial.material, trial.world.size)
    total = sum(cut.counts()) if cut.spans_ranks else cut.counts()[trial.world.rank]
    divided = cut.denominators()[trial.world.rank] * (1 if parts.aggregation.averages else cut.divisor)
    return divided / total if total else 0.0


@dataclass
class Counterfactuals:
    """Of the cases of a run; the order of a strategy's sum is revealed once. All ranks call alike."""

    store: GradientStore
    _revealed: dict[object, list[list[Chunk]]] = field(default_factory=dict)

    def rungs(self, trial: Trial, tap: Tap, flats: Flats, known: Known, share: float) -> Rungs:
        """After `tap` has seen the case; `share` is keep_sound's."""
        first = trial.world.rank == 0 or not trial.cut.spans_ranks
        rungs = Rungs(
            known=list(self._known(trial, known, flats)) if first else [],
            sound=flats.load(SOUND),
            share=share,
            value=flats.load(UNCLIPPED),
        )
        if not trial.cut.spans_ranks:
            return rungs
        trial.world.control.meet()  # rank 0 alone has computed the whole batch
        return self._with_sum(rungs, trial, tap, flats)

    def _known(self, trial: Trial, known: Known, flats: Flats) -> Iterator[tuple[str, Tensor]]:
        """The float64 rungs, and what the case's kernels make of the whole batch."""
        right = self.store.flat(known.right)
        if known.full_batch:
            yield "", self.store.flat(known.full_batch)
        yield COUPLING, right
        last = self.store.flat(known.rounded) if known.rounded else right
        if known.rounded:
            yield PARAMETERS, last
        alone = trial.alone()
        alone = replace(alone, parts=replace(alone.parts, clip=Clip()))
        whole = known.full_rounded or known.full_batch
        if whole and not alone.skip_reason():
            flats.save(KERNELS, _shifted(last, alone.gradient(), self.store.flat(whole)))
            yield KERNELS, flats.load(KERNELS)

    def _with_sum(self, rungs: Rungs, trial: Trial, tap: Tap, flats: Flats) -> Rungs:
        """Where the strategy's sum was called at all: a planted mistake may have left it out."""
        aggregation, world = trial.parts.aggregation, trial.world
        if SUMMED not in tap.seen:
            return rungs
        if aggregation.in_backward:
            flats.save(BROUGHT, self._brought_in_backward(trial, tap))
        after = snapped(projected(flats.load(UNCLIPPED), flats.load(SUMMED))[0])
        before = after / world.size if aggregation.averages else after
        rungs = replace(rungs, brought=flats.load(_brought(flats)), before=before)
        known = 1 < world.size <= MOST_RANKS and not any(unsupported(like.dtype, world.size) for like in tap.handed)
        if not known or not aggregation.sums:
            return rungs
        return replace(rungs, summed=self._summed(trial, tap, flats, after, before))

    def _brought_in_backward(self, trial: Trial, tap: Tap) -> list[Tensor]:
        """What a rank hands over during backward, where nobody else can look; no fault can be planted there."""
        parts = replace(quiet(trial.parts), fault=Fault())
        cut = Cut(parts, trial.material, trial.world.size)
        scale = tap.rig.scaler.get_scale() if tap.rig.scaler else 1.0
        gradient = trial.once(parts).gradient()
        torch._foreach_mul_(gradient, scale * (1 if parts.aggregation.averages else cut.divisor))
        return gradient

    def _summed(self, trial: Trial, tap: Tap, flats: Flats, after: float, before: float) -> Summed:
        exchange, brought = tap.rig.exchange, _brought(flats)
        handed = _Handed(exchange, tap.handed, flats, trial.world.device)
        sent = handed.as_sent(brought if trial.parts.aggregation.in_backward else HANDED)
        key = (trial.parts.aggregation, tuple((tensor.numel(), tensor.dtype) for tensor in sent))
        if key not in self._revealed:
            like = [torch.empty_like(tensor, device="meta") for tensor in sent]
            total = partial(_meet_and_sum, trial.world.control, exchange)
            self._revealed[key] = reveal(total, like, trial.world.rank, trial.world.size, trial.world.device)
        return Summed(
            brought=handed.as_received(brought),
            sent=sent,
            received=handed.as_received(SUMMED),
            chunks=self._revealed[key],
            places=handed.places(),
            after=after,
            before=before,
        )


@dataclass(frozen=True)
class _Handed:
    """Gradients in files, put together as an exchange does it, and in files again."""

    exchange: Exchange
    like: Sequence[Tensor]
    flats: Flats
    device: torch.device

    @property
    def _plain(self) -> bool:
        """Whether they travel one by one, as they are."""
        return type(self.exchange).received is Exchange.received

    def as_sent(self, name: str) -> list[Tensor]:
        """Flat, as they travel."""
        if type(self.exchange).sent is Exchange.sent:
            return self._parts(name)
        return self._kept(f"{name}.sent", self.exchange.sent(self._shaped(name)))

    def as_received(self, name: str) -> list[Tensor]:
        """Flat, put together alike, and not scaled."""
        return self._parts(name) if self._plain else self._kept(f"{name}.received", self.exchange.received(self._shaped(name)))

    def places(self) -> list[Tensor | None]:
        """See ladder.places_of."""
        return [None] * len(self.like) if self._plain else places_of(self.exchange.received, self._shaped(SUMMED))

    def _parts(self, name: str) -> list[Tensor]:
        return list(self.flats.load(name).split([like.numel() for like in self.like]))

    def _shaped(self, name: str) -> list[Tensor]:
        both = zip(self._parts(name), self.like, strict=True)
        return [
            torch.empty_like(like, dtype=part.dtype, device=self.device).copy_(part.view(like.shape)) for part, like in both
        ]

    def _kept(self, name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
        self.flats.save(name, tensors)
        return list(self.flats.load(name).split([tensor.numel() for tensor in tensors]))


def _meet_and_sum(control: Control, exchange: Exchange, tensors: list[Tensor]) -> None:
    """No rank waits in a measured collective for one that has no memory for it."""
    control.meet()
    exchange.total(tensors)


def _brought(flats: Flats) -> str:
    """What was handed over, before it was cast to what it travels in: the local gradient, unless something came between."""
    if BROUGHT in flats:
        return BROUGHT
    local, handed = flats.load(LOCAL), flats.load(HANDED)
    if all(torch.equal(a.to(b.dtype), b) for a, b in zip(local.split(PIECE), handed.split(PIECE), strict=True)):
        return LOCAL
    flats.save(BROUGHT, (part.to(local.dtype) for part in handed.split(PIECE)))
    return BROUGHT


def _shifted(last: Tensor, one: Sequence[Tensor], other: Tensor) -> Iterator[Tensor]:
    """last + one - other, in float64, piece by piece."""
    sizes = [part.numel() for part in one]
    for a, b, c in zip(last.split(sizes), one, other.split(sizes), strict=True):
        pieces = zip(a.split(PIECE), b.reshape(-1).split(PIECE), c.split(PIECE), strict=True)
        yield from (x + y.double() - z for x, y, z in pieces)
