"""One setting of the collective sweep: its buffers, the call that is timed, and the check of what the call leaves."""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.probes import crafted
from harness.tensors import collectives
from harness.tensors.collectives import Pending

Collective = Literal["all_reduce", "reduce_scatter", "all_gather"]
Dtype = Literal["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64"]
"""Keys of DTYPES."""
COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "reduce_scatter", "all_gather")
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER = COLLECTIVES
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.int8, torch.uint8, torch.int32, torch.int64),
    )
}
"""Those in which crafted data are exact."""


@dataclass(frozen=True)
class Setting:
    """What is sent, and how."""

    collective: str
    dtype: str
    in_place: bool
    in_flight: int
    """1: a blocking call; more: so many asynchronous ones, each with buffers of its own, and then a wait for each."""
    bytes: int
    """Of the whole message, as nccl-tests counts: of all_gather's output and reduce_scatter's input."""

    @property
    def family(self) -> str:
        """The setting but for its size."""
        where, flight = "in place" if self.in_place else "out of place", f", {self.in_flight} in flight" * (self.in_flight > 1)
        return f"{self.collective} {self.dtype}, {where}{flight}"

    @property
    def subject(self) -> str:
        """For a person; unique in a sweep."""
        return f"{self.family}, {self.bytes} B"

    def count(self, size: int) -> int:
        """Elements, as nccl-tests counts: of all_reduce's message, and of one rank's share of the others'."""
        return self.bytes // DTYPES[self.dtype].itemsize // (1 if self.collective == ALL_REDUCE else size)

    def needs_bytes(self, size: int) -> int:
        """Of all buffers; an all_reduce is always in place."""
        apart = 0 if self.in_place else self.bytes // size
        return self.in_flight * (self.bytes + apart)


@dataclass
class Transfer:
    """The setting made ready on one rank."""

    setting: Setting
    rank: int
    size: int
    group: ProcessGroup
    device: torch.device
    _parcels: list[tuple[Tensor, Tensor]] = field(init=False)
    """(whole, share) of each call in flight: the message, and this rank's part of it; all_reduce has the message alone."""

    def __post_init__(self) -> None:
        self._parcels = [self._allocate() for _ in range(self.setting.in_flight)]

    def call(self) -> None:
        """What is timed. On NCCL it makes the stream wait, and not the host."""
        if self.setting.in_flight == 1:
            self._start(*self._parcels[0], blocking=True)
            return
        works = [self._start(whole, share, blocking=False) for whole, share in self._parcels]
        for work in works:
            assert work is not None
            work.wait()

    def prove(self, seed: int) -> int:
        """Call with crafted data, and check every element of what it leaves; how many they are. Raises WrongResultError."""
        for place, (whole, share) in enumerate(self._parcels):
            self._craft(whole, share, seed + place)
        self.call()
        return sum(self._check(whole, share, seed + place) for place, (whole, share) in enumerate(self._parcels))

    def settle(self) -> None:
        """Zeros, which stay as they are however often they are summed in place."""
        for whole, share in self._parcels:
            whole.zero_()
            share.zero_()

    def _allocate(self) -> tuple[Tensor, Tensor]:
        setting, dtype = self.setting, DTYPES[self.setting.dtype]
        whole = torch.empty(setting.bytes // dtype.itemsize, dtype=dtype, device=self.device)
        if setting.collective == ALL_REDUCE:
            return whole, whole
        count = setting.count(self.size)
        return whole, whole[self._begin :][:count] if setting.in_place else whole.new_empty(count)

    @property
    def _begin(self) -> int:
        """Where this rank's share begins in the whole message."""
        return self.rank * self.setting.count(self.size)

    def _start(self, whole: Tensor, share: Tensor, *, blocking: bool) -> Pending | None:
        calls: dict[str, partial[Pending | None]] = {
            ALL_REDUCE: partial(collectives.all_reduce, whole),
            REDUCE_SCATTER: partial(collectives.reduce_scatter_single, share, whole),
            ALL_GATHER: partial(collectives.all_gather_single, whole, share),
        }
        work: Pending | None = calls[self.setting.collective](group=self.group, async_op=not blocking)
        return work

    def _craft(self, whole: Tensor, share: Tensor, seed: int) -> None:
        """The inputs; what is output alone is first made wrong everywhere."""
        gathers = self.setting.collective == ALL_GATHER
        (whole if gathers else share).copy_(torch.tensor(crafted.NEVER))
        if gathers:
            crafted.fill(share, crafted.sequence(seed), self._begin)
        else:
            crafted.fill(whole, crafted.contribution(self.rank, self.size, seed))

    def _check(self, whole: Tensor, share: Tensor, seed: int) -> int:
        if self.setting.collective == REDUCE_SCATTER:
            crafted.check(share, crafted.total(self.size, seed), self._begin)
            return len(share)
        values = crafted.sequence(seed) if self.setting.collective == ALL_GATHER else crafted.total(self.size, seed)
        crafted.check(whole, values)
        return len(whole)
