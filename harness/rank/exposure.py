"""A case's twins, run in turn with it: its step without communication, and as many bytes with nothing to hide behind."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.rank.clock import Phase, Stopwatch, unseen
from harness.rank.process_group import World
from harness.rank.rig import Rig
from harness.tensors import collectives

T = TypeVar("T")
Iterate = Callable[[nn.Module, Callable[[], list[float]]], list[float]]
"""Clears the gradients, lets the ranks meet, and runs one iteration."""


class Watch(Protocol):
    """Times the phases of one iteration."""

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns."""

    @property
    def refused(self) -> bool:
        """True if no further iteration will be timed; equal on all ranks."""

    def time(self, phases: Sequence[Phase]) -> list[float]:
        """Run the phases once; seconds, as `columns` says."""


MakeWatch = Callable[[Sequence[str]], Watch]
"""Given the names of the phases."""
ALONE, COLLECTIVE = "step_alone", "collective_alone"
"""Phases."""


class Twins:
    """Built beside a case's rig, before its memory is measured; `time` runs each once."""

    def __init__(self, rig: Rig, world: World, dtype: torch.dtype | None, *, as_many_bytes: bool) -> None:
        """`rig` is of the same step without communication; `dtype` is what gradients travel in, None for their own.

        as_many_bytes: whether the case sends as many bytes as its gradient has; else there is no like for its communication.
        """
        self._rig, self._as_many_bytes = rig, as_many_bytes
        self._buffers = _buffers(rig.model, dtype, world.device) if as_many_bytes else []
        self._all_reduce = [(COLLECTIVE, partial(_all_reduce, self._buffers, world.measured))]
        self._watch(lambda names: Stopwatch(world.device, names, unseen))
        self.held_bytes = 0
        """What they hold of memory all the time."""

    def watched(self, make: MakeWatch) -> "Twins":
        """The same twins, timed by other watches."""
        twins = copy.copy(self)
        twins._watch(make)
        return twins

    def _watch(self, make: MakeWatch) -> None:
        self._alone = make(self._rig.names())
        self._collective = make([COLLECTIVE]) if self._as_many_bytes else None

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns."""
        alone = [(ALONE, clock) for phase, clock in self._alone.columns if phase == "step"]
        return alone + (_of(COLLECTIVE, self._collective.columns, self._collective.columns) if self._collective else [])

    def time(self, batch: int, iterate: Iterate) -> list[float]:
        """Seconds, as `columns` says; `iterate` clears the gradients and lets the ranks meet before each."""
        alone = iterate(self._rig.model, partial(self._alone.time, self._rig.phases[batch % len(self._rig.phases)]))
        self._rig.model.zero_grad(set_to_none=True)  # their memory is not the case's
        seconds = _of("step", self._alone.columns, alone)
        if self._collective:
            collective = iterate(self._rig.model, partial(self._collective.time, self._all_reduce))
            seconds += _of(COLLECTIVE, self._collective.columns, collective)
        return seconds


def _of(phase: str, columns: Sequence[tuple[str, str]], values: Sequence[T]) -> list[T]:
    return [value for (name, _), value in zip(columns, values, strict=True) if name == phase]


def _buffers(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> list[Tensor]:
    """One for each dtype of the gradients, in memory that has been touched."""
    return [torch.empty(elements, dtype=dtype or own, device=device).zero_() for own, elements in _elements(model).items()]


def _elements(model: nn.Module) -> dict[torch.dtype, int]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {one.dtype: sum(p.numel() for p in trained if p.dtype == one.dtype) for one in trained}


def _all_reduce(buffers: Sequence[Tensor], group: ProcessGroup) -> None:
    for buffer in buffers:
        collectives.all_reduce(buffer, group=group)
