"""A case's twins, run in turn with it: its step without communication, and as many bytes with nothing to hide behind."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from harness.rank.clock import Stopwatch
from harness.rank.process_group import World
from harness.rank.rig import Rig

ALONE, COLLECTIVE = "step_alone", "collective_alone"
"""Phases."""


class Twins:
    """Built beside a case's rig, before its memory is measured; `time` runs each once."""

    def __init__(self, rig: Rig, world: World, dtype: torch.dtype | None) -> None:
        """`rig` is of the same step without communication; `dtype` is what gradients travel in, None for their own."""
        self._rig, self._alone = rig, Stopwatch(world.device, rig.names(), _unseen)
        self._collective = Stopwatch(world.device, [COLLECTIVE], _unseen)
        self._buffers = [
            torch.zeros(elements, dtype=dtype or own, device=world.device) for own, elements in _elements(rig.model).items()
        ]
        self._all_reduce = [(COLLECTIVE, partial(_all_reduce, self._buffers, world.measured))]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """(phase, clock) of each number that `time` returns."""
        alone = [(ALONE, clock) for phase, clock in self._alone.columns if phase == "step"]
        return alone + [column for column in self._collective.columns if column[0] == COLLECTIVE]

    def time(self, batch: int, iterate: Callable[[nn.Module, Callable[[], list[float]]], list[float]]) -> list[float]:
        """Seconds, as `columns` says; `iterate` clears the gradients and lets the ranks meet before each."""
        alone = iterate(self._rig.model, partial(self._alone.time, self._rig.phases[batch % len(self._rig.phases)]))
        collective = iterate(self._rig.model, partial(self._collective.time, self._all_reduce))
        steps = [seconds for seconds, (phase, _) in zip(alone, self._alone.columns, strict=True) if phase == "step"]
        timed = zip(collective, self._collective.columns, strict=True)
        return steps + [seconds for seconds, (phase, _) in timed if phase == COLLECTIVE]


def _elements(model: nn.Module) -> dict[torch.dtype, int]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {one.dtype: sum(p.numel() for p in trained if p.dtype == one.dtype) for one in trained}


def _all_reduce(buffers: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    for buffer in buffers:
        dist.all_reduce(buffer, group=group)


def _unseen(phase: str) -> None:
    """The twins' phases are none of the case."""
