"""The order in which ranks' tensors are added up: revealed by masks, a tree for each chunk of a tensor, and proved by a replay.

Masks show what a sum does with masks. That a tree is the one by which data are summed is proved by replaying data, bit for bit.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise

import torch
from torch import Tensor

from harness.numerics.trees import NoTreeError, Tree, evaluate, is_binary, tree_of

Total = Callable[[list[Tensor]], object]
"""Leaves in each tensor its sum over ranks, on all ranks."""
TREE, AT_ONCE, WIDE, UNSTABLE, NONE = SHOWS = ("tree", "at once", "wide", "unstable", "none")
"""What masks can show: rounded additions of two; several terms added at once; an accumulator so wide that M and 1 fit into it;
not the same twice; nothing that a sum of the terms leaves."""
_DIGITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
"""Binary digits of a significand."""
_UNITS = {torch.float16: 2.0**-14}
"""Where 1 would leave too little room for M."""


@dataclass(frozen=True)
class Chunk:
    """Elements `start` to `stop` of a flat tensor, which are summed alike."""

    start: int
    stop: int
    shows: str
    """One of SHOWS."""
    tree: Tree | None = None
    """Where it shows one."""

    @property
    def replays(self) -> bool:
        """Whether the sum can be made once more in one process."""
        return self.shows == TREE


def unsupported(dtype: torch.dtype, size: int) -> str | None:
    """Why the order of a sum over so many ranks cannot be revealed in this dtype; None where it can."""
    if dtype not in _DIGITS:
        return f"{dtype} is not summed by rounded additions that masks could show"
    most = 2 ** _DIGITS[dtype]
    return f"{dtype} counts to {most}, and there are {size} ranks" if size > most else None


def _masks(dtype: torch.dtype, size: int) -> tuple[float, float]:
    """(M, unit): all other ranks' units together are lost in M, and only just, so that a wider accumulator keeps them."""
    unit = _UNITS.get(dtype, 1.0)
    return unit * 2.0 ** (_DIGITS[dtype] + size.bit_length() + 1), unit


def reveal(total: Total, like: Sequence[Tensor], rank: int, size: int, device: torch.device | None = None) -> list[list[Chunk]]:
    """The chunks of each of the tensors that `total` sums, in order. All ranks call alike, and find the same.

    like: their shapes, dtypes and device, unless `device` says another (they may then be meta tensors); `unsupported` must be
    None for each dtype. Takes W (W - 1) calls of `total`: each pair of ranks is probed, and each twice.
    """
    pairs = list(combinations(range(size), 2))
    probed = [_probe(total, like, pair, rank, size, device) for _ in range(2) for pair in pairs]
    return [_chunks(tensor.numel(), [seen[place] for seen in probed], pairs, size) for place, tensor in enumerate(like)]


@dataclass(frozen=True)
class _Runs:
    """What one pair's masks leave in a tensor: runs of equal values, in units."""

    starts: list[int]
    values: list[float]

    def at(self, place: int) -> float:
        return self.values[bisect_right(self.starts, place) - 1]


def _probe(
    total: Total, like: Sequence[Tensor], pair: tuple[int, int], rank: int, size: int, device: torch.device | None
) -> list[_Runs]:
    """By tensor and element: the number of ranks outside the smallest subtree that holds the pair."""
    sign = {pair[0]: 1.0, pair[1]: -1.0}.get(rank)
    masks = [_masks(tensor.dtype, size) for tensor in like]
    tensors = [
        torch.full_like(tensor, sign * mask if sign else unit, device=device or tensor.device)
        for tensor, (mask, unit) in zip(like, masks, strict=True)
    ]
    total(tensors)
    return [_runs(tensor, unit) for tensor, (_, unit) in zip(tensors, masks, strict=True)]


def _runs(tensor: Tensor, unit: float) -> _Runs:
    flat = tensor.flatten()
    starts = [0, *((flat[1:] != flat[:-1]).nonzero().flatten() + 1).tolist()] if len(flat) else []
    return _Runs(starts, (flat[starts].double() / unit).tolist())


def _chunks(elements: int, probed: Sequence[_Runs], pairs: Sequence[tuple[int, int]], size: int) -> list[Chunk]:
    edges = sorted({0, elements, *(start for runs in probed for start in runs.starts)})
    return list(_merged(_chunk(*ends, [runs.at(ends[0]) for runs in probed], pairs, size) for ends in pairwise(edges)))


def _chunk(start: int, stop: int, seen: Sequence[float], pairs: Sequence[tuple[int, int]], size: int) -> Chunk:
    first, again = seen[: len(pairs)], seen[len(pairs) :]
    if first != again:
        return Chunk(start, stop, UNSTABLE)
    if not set(first) <= set(range(size - 1)):
        return Chunk(start, stop, NONE)
    if size > 2 and set(first) == {size - 2}:
        return Chunk(start, stop, WIDE)
    ancestors = [[1] * size for _ in range(size)]
    for (one, other), outside in zip(pairs, first, strict=True):
        ancestors[one][other] = ancestors[other][one] = size - int(outside)
    try:
        tree = tree_of(ancestors)
    except NoTreeError:
        return Chunk(start, stop, NONE)
    return Chunk(start, stop, TREE if is_binary(tree) else AT_ONCE, tree)


def _merged(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Neighbours that are summed alike are one."""
    last: Chunk | None = None
    for chunk in chunks:
        if last and (last.shows, last.tree) == (chunk.shows, chunk.tree):
            last = replace(last, stop=chunk.stop)
            continue
        if last:
            yield last
        last = chunk
    if last:
        yield last


def replayed(chunk: Chunk, term: Callable[..., Tensor]) -> Tensor:
    """The chunk's sum in its order, where it `replays`; term(rank, start=, stop=) is that part of a rank's flat tensor."""
    assert chunk.tree is not None
    return evaluate(chunk.tree, partial(term, start=chunk.start, stop=chunk.stop))
