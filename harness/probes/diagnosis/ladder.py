"""The ladder: from the full-batch float64 gradient to the real one, one difference a rung, and the sum over ranks made again.

Each step is told by the distance that it makes (harness.numerics.budget). The sum over ranks is made again in one process, in
the order that masks have revealed; where every bit is the collective's, that order is proved, and with it what the sum did.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import frexp, isfinite, ldexp

import torch
from torch import Tensor

from harness.numerics.budget import Step, budget, products_of
from harness.numerics.trees import describe
from harness.numerics.weights import Products
from harness.probes.control import Control
from harness.probes.diagnosis.products import PIECE_BYTES
from harness.probes.order import Chunk, replayed

COUPLING, PARAMETERS, KERNELS, SHARDING = "batch coupling", "precision of parameters", "kernels and batch shape", "sharding"
NORMALIZATION, SUM_ORDER, COMMUNICATION = "normalization", "summation order", "precision of communication"
AGGREGATION, REST = "aggregation", "unexplained"
"""Names of steps, in order; AGGREGATION stands for the last ones where the strategy's sum cannot be made again."""
_ROWS = 3
"""What a rank tells of an element."""


@dataclass(frozen=True)
class Summed:
    """One rank's part in the sum over ranks, tensor by tensor as they travel, flat."""

    brought: Sequence[Tensor]
    """This rank's gradients, before they are cast to what they travel in."""
    sent: Sequence[Tensor]
    received: Sequence[Tensor]
    """What the collective left, as `sent`."""
    chunks: Sequence[Sequence[Chunk]]
    places: Sequence[Tensor | None]
    """Where in the gradient each element stands, int64, -1: nowhere. None: where the tensors before it end, and in order."""
    after: float
    """What the collective's result is multiplied by to make the gradient."""
    before: float
    """What a rank's gradient is multiplied by in all."""


@dataclass(frozen=True)
class Rungs:
    """What lies between the reference and the result. Flat."""

    known: Sequence[tuple[str, Tensor]]
    """On rank 0: the step that leads to it, and the gradient; the first one is where the ladder begins."""
    sound: Tensor
    """This rank's local gradient as the case's kernels make it, with nothing wrong."""
    share: float
    """What it is multiplied by in the right result."""
    value: Tensor
    """The result."""
    summed: Summed | None = None
    brought: Tensor | None = None
    """Where the sum cannot be made again: what this rank brought to it."""
    before: float = 1.0
    """What that is multiplied by."""


@dataclass(frozen=True)
class Ladder:
    """On rank 0."""

    steps: list[tuple[str, Step]]
    replayed: float
    """Share of the elements of the collective's result whose bits the replay gives; NaN: there was no replay."""
    orders: tuple[str, ...] = ()
    """Of the sum over ranks, each once: brackets, or what masks show instead."""

    @property
    def proved(self) -> bool:
        return self.replayed == 1.0

    def share(self, name: str) -> float:
        """Of one step; 0 where there is none."""
        return sum(step.share for own, step in self.steps if own == name)


def climb(control: Control, rungs: Rungs) -> Ladder | None:
    """All ranks call alike; the ladder is rank 0's."""
    climbed = _Climbed()
    for piece in _pieces(rungs):
        rows = torch.zeros(_ROWS, piece.stop - piece.start, dtype=torch.float64)
        piece.fill(rows, rungs)
        control.meet()
        gathered = control.gather(rows)
        if control.rank == 0:
            climbed.add(piece, rungs, gathered)
    return climbed.ladder(rungs) if control.rank == 0 else None


@dataclass(frozen=True)
class _Piece:
    """Elements `start` to `stop` of a tensor that travels, or of the gradient."""

    start: int
    stop: int
    tensor: int = -1
    """-1: of the gradient itself."""
    chunk: Chunk | None = None
    offset: int = 0

    def of(self, flat: Tensor, places: Tensor | None) -> Tensor:
        """The same elements of a flat gradient."""
        if places is None:
            return flat[self.offset + self.start : self.offset + self.stop]
        return flat[places[self.start : self.stop].clamp_min(0)]

    def fill(self, rows: Tensor, rungs: Rungs) -> None:
        """What this rank tells: its sound part, what it brings, and what it sends."""
        summed = rungs.summed
        rows[0] = self.of(rungs.sound, summed.places[self.tensor] if summed else None)
        rows[0] *= rungs.share
        if summed:
            rows[1] = summed.brought[self.tensor][self.start : self.stop]
            rows[2] = summed.sent[self.tensor][self.start : self.stop]
        elif rungs.brought is not None:
            rows[1] = self.of(rungs.brought, None)


def _pieces(rungs: Rungs) -> Iterator[_Piece]:
    step = PIECE_BYTES // (8 * _ROWS)
    if rungs.summed is None:
        elements = len(rungs.value)
        yield from (_Piece(start, min(start + step, elements)) for start in range(0, elements, step))
        return
    offset = 0
    for tensor, chunks in enumerate(rungs.summed.chunks):
        for chunk in chunks:
            for start in range(chunk.start, chunk.stop, step):
                yield _Piece(start, min(start + step, chunk.stop), tensor, chunk, offset)
        offset += len(rungs.summed.sent[tensor])


@dataclass
class _Climbed:
    """Rank 0's sums so far."""

    products: Products | None = None
    elements: int = 0
    equal: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, piece: _Piece, rungs: Rungs, ranks: Sequence[Tensor]) -> None:
        summed = rungs.summed
        places = summed.places[piece.tensor] if summed else None
        found = [(name, piece.of(flat, places).double()) for name, flat in rungs.known]
        found.append((SHARDING if KERNELS in dict(found) else KERNELS, _sum(rows[0] for rows in ranks)))
        if summed:
            found += self._summed(piece, summed, ranks)
        elif rungs.brought is not None:
            found.append((NORMALIZATION, _sum(rows[1] for rows in ranks) * rungs.before))
        found.append((REST if summed else AGGREGATION, piece.of(rungs.value, places).double()))
        if places is not None:
            kept = places[piece.start : piece.stop] >= 0
            found = [(name, flat[kept]) for name, flat in found]
        own = products_of([flat for _, flat in found])
        self.products = own if self.products is None else self.products + own
        self.names = [name for name, _ in found[1:]]

    def _summed(self, piece: _Piece, summed: Summed, ranks: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        sent, brought = summed.sent[piece.tensor].dtype, summed.brought[piece.tensor].dtype
        received = summed.received[piece.tensor][piece.start : piece.stop]
        yield NORMALIZATION, _sum(rows[1] for rows in ranks) * summed.before
        if piece.chunk is None or not piece.chunk.replays:
            self.elements += len(received)
            yield from ((name, received.double() * summed.after) for name in _names(sent, brought))
            return
        again = _again(piece.chunk, [rows[2].to(sent) for rows in ranks])
        self.elements += len(received)
        self.equal += int((_bits(again) == _bits(received)).sum())
        if sent != brought:
            yield SUM_ORDER, _again(piece.chunk, [rows[1].to(brought) for rows in ranks]).double() * summed.after
        yield _names(sent, brought)[-1], again.double() * summed.after

    def ladder(self, rungs: Rungs) -> Ladder:
        assert self.products is not None
        replay = self.equal / self.elements if rungs.summed and self.elements else float("nan")
        return Ladder(list(zip(self.names, budget(self.products), strict=True)), replay, _orders(rungs.summed))


def _orders(summed: Summed | None) -> tuple[str, ...]:
    chunks = [chunk for of_tensor in summed.chunks for chunk in of_tensor] if summed else []
    return tuple(dict.fromkeys(chunk.shows if chunk.tree is None else describe(chunk.tree) for chunk in chunks))


def _names(sent: torch.dtype, brought: torch.dtype) -> list[str]:
    return [SUM_ORDER] if sent == brought else [SUM_ORDER, COMMUNICATION]


def _again(chunk: Chunk, ranks: Sequence[Tensor]) -> Tensor:
    return replayed(chunk, lambda rank, start, stop: ranks[rank])


def _sum(rows: Iterator[Tensor]) -> Tensor:
    total = next(rows).clone()
    for row in rows:
        total += row
    return total


def _bits(tensor: Tensor) -> Tensor:
    """Integers of equal bits."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


_BASE = 64
"""A digit and the base itself are whole numbers in every dtype that gradients have."""


def places_of(put_together: Callable[[list[Tensor]], list[Tensor]], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """Where each element of what travels stands in the flat gradient: numbers are put together as gradients are."""
    sizes = [gradient.numel() for gradient in gradients]
    travelling = [tensor.numel() for tensor in put_together([torch.zeros_like(gradient) for gradient in gradients])]
    places, unit = [torch.zeros(size, dtype=torch.int64) for size in travelling], 1
    elements = torch.arange(sum(sizes))
    while unit <= max(sum(sizes) - 1, 1):
        digits = (elements // unit % _BASE + 1).split(sizes)
        carried = put_together([d.to(g.dtype).view(g.shape).to(g.device) for d, g in zip(digits, gradients, strict=True)])
        for place, digit in zip(places, carried, strict=True):
            place += (digit.flatten().cpu().long() - 1) * unit
        unit *= _BASE
    offset, told = 0, list[Tensor | None]()
    for place in places:
        in_order = torch.equal(place, torch.arange(offset, offset + len(place)))
        told.append(None if in_order else place.clamp_min(-1))
        offset += len(place)
    return told


def snapped(factor: float) -> float:
    """The simple fraction, times a power of two, that a factor was meant to be; itself where none is near."""
    if not isfinite(factor):
        return factor
    mantissa, exponent = frexp(factor)
    simple = float(Fraction(mantissa).limit_denominator(1000))
    return ldexp(simple, exponent) if abs(simple - mantissa) <= 1e-5 * abs(mantissa) else factor
