"""The collective sweep: how fast the machine sends messages of every size, and whether what arrives is right."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from math import isnan, nan
from typing import Annotated

from harness.probes.base import ONE_RANK, CannotError, Machine, Probe, Question, Way
from harness.probes.transfer import ALL_REDUCE, COLLECTIVES, DTYPES, Collective, Dtype, Setting, Transfer
from harness.schema.parameters import AtLeast, Bytes, Count, Distinct, NotEmpty, Range, Whole
from harness.schema.record import NOT_MEASURED, Observation, Timing

Flights = Annotated[int, Range(1, 1024)]
"""Number of concurrent calls, each with its own buffers."""
_CANNOT = re.compile("not supported|unsupported|invalid scalar type|not implemented", re.IGNORECASE)
"""How a backend says that it has no such collective for such a dtype."""
_FEWER = 4
"""Iterations of single calls, over those of calls in a row."""
_MANY = 2**20
"""Bytes of a message up to which all calls in a row are made."""
_ROOM = 0.5
"""Of the free memory, for the buffers; what the backend allocates beside them is not known."""


class CollectivesProbe(Probe):
    """Message sizes by powers of two: seconds of a call, raw, and crafted data checked exactly before and after.

    collectives, dtypes, in_place, in_flight: all combinations. least_bytes, most_bytes: of the message, as nccl-tests counts.
    beside_bytes: of the most that is sent in another dtype or with another number in flight than the first of each.
    iterations, warm_up: calls of each setting. back_to_back: collectives in a row, of messages up to 1 MiB; of larger ones
    as many as send as many bytes, at least two calls; 0: calls in a row are not timed.

    Timed: one call, until it returns; several in flight: until all have been waited for. Before it stands a barrier of the
    control group. Then calls in a row, a quarter as often. Not timed: allocation, filling and checking.
    """

    independent = True

    def __init__(
        self,
        collectives: Annotated[Sequence[Collective], NotEmpty(), Distinct()] = COLLECTIVES,
        dtypes: Annotated[Sequence[Dtype], NotEmpty(), Distinct()] = ("float32",),
        in_place: Annotated[Sequence[bool], NotEmpty(), Distinct()] = (True, False),
        in_flight: Annotated[Sequence[Flights], NotEmpty()] = (1, 4),
        least_bytes: Bytes = 4,
        most_bytes: Annotated[Bytes, AtLeast("least_bytes")] = 2**26,
        beside_bytes: Bytes = 2**20,
        iterations: Count = 16,
        warm_up: Whole = 3,
        back_to_back: Whole = 10,
    ) -> None:
        self._families = list(product(collectives, dtypes, in_place, in_flight))
        self._first = dtypes[0], in_flight[0]
        self._least, self._most, self._beside = least_bytes, most_bytes, beside_bytes
        self._iterations, self._warm_up, self._back_to_back = iterations, warm_up, back_to_back

    def questions(self, machine: Machine) -> list[Question]:
        """A setting each; what cannot be done at any size is told once."""
        room = int(machine.free_bytes() * _ROOM)
        return [question for family in self._families for question in self._of_family(machine, Setting(*family, 0), room)]

    def _of_family(self, machine: Machine, family: Setting, room: int) -> Iterator[Question]:
        reason = _no_such(family, machine)
        if reason:
            yield Question(family.family, _nothing, reason)
            return
        for size in self._sizes(family, machine.size):
            setting = replace(family, bytes=size)
            needed = setting.needs_bytes(machine.size)
            short = f"its buffers take {needed} B, and {room} B are left for them" if needed > room else None
            yield Question(setting.subject, partial(self._ask, setting, machine), short)

    def _sizes(self, family: Setting, ranks: int) -> list[int]:
        """From the least to the most by powers of two, each at least an element a rank, and as many for every rank."""
        most = self._most if (family.dtype, family.in_flight) == self._first else min(self._most, self._beside)
        unit = DTYPES[family.dtype].itemsize * (1 if family.collective == ALL_REDUCE else ranks)
        asked = [self._least * 2**power for power in range(most.bit_length()) if self._least * 2**power <= most]
        return list(dict.fromkeys(max(1, size // unit) * unit for size in asked))

    def _ask(self, setting: Setting, machine: Machine) -> Iterator[Observation | Timing]:
        transfer = Transfer(setting, machine.rank, machine.size, machine.group, machine.device)
        yield Observation("crafted data", "elements checked", _first_proof(transfer, machine.seed))
        transfer.settle()
        timing = partial(
            Timing,
            collective=setting.collective,
            dtype=setting.dtype,
            bytes=setting.bytes,
            count=setting.count(machine.size),
            in_place=setting.in_place,
            in_flight=setting.in_flight,
        )
        for iteration in range(self._warm_up + self._iterations):
            machine.meet()
            for clock, seconds in machine.time(transfer.call).items():
                yield timing(iteration=iteration, warm_up=iteration < self._warm_up, clock=clock, seconds=seconds)
        if self._back_to_back:
            with closing(machine.in_a_row(transfer.call, self._calls(setting))) as ways:
                for way in ways:
                    yield from self._in_a_row(way, timing)
        yield Observation("crafted data, after the timed calls", "elements checked", transfer.prove(machine.seed + 1))

    def _calls(self, setting: Setting) -> int:
        """Number of calls in a row."""
        in_all = self._back_to_back * _MANY // max(_MANY, setting.bytes)
        return max(2, in_all // setting.in_flight)

    def _in_a_row(self, way: Way, timing: Callable[..., Timing]) -> Iterator[Observation | Timing]:
        """Time calls in a row; NaN, which is on all ranks or on none, is left out."""
        warm_up, measured = min(1, self._warm_up), max(1, self._iterations // _FEWER)
        times = [way.time() for _ in range(warm_up + measured)] if way.time else []
        for iteration, seconds in enumerate(times):
            if not isnan(seconds):
                yield timing(iteration=iteration, warm_up=iteration < warm_up, clock=way.clock, seconds=seconds)
        if all(map(isnan, times[warm_up:])):
            yield Observation(way.clock, NOT_MEASURED, nan, way.reason)


def _first_proof(transfer: Transfer, seed: int) -> int:
    """Raises CannotError where the backend has no such collective."""
    try:
        return transfer.prove(seed)
    except (RuntimeError, TypeError, ValueError) as error:
        if _CANNOT.search(str(error)):
            raise CannotError(f"{transfer.group.name()}: {str(error).splitlines()[0]}") from error
        raise


def _no_such(family: Setting, machine: Machine) -> str | None:
    if machine.size < 2:
        return ONE_RANK
    if family.collective == ALL_REDUCE and not family.in_place:
        return "torch's all_reduce works in place"
    return None


def _nothing() -> Iterable[Observation]:
    return ()
