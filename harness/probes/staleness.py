"""Stale reads: every way of reading a gradient too early beside its safe twin, counted stale, fresh and torn."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import torch

from harness.probes import accesses
from harness.probes.accesses.base import Access, Read
from harness.probes.base import Machine, Probe, Question
from harness.schema.parameters import Count, Range
from harness.schema.record import Observation

Delay = Annotated[float, Range(0, 1e4, above=True)]
"""Milliseconds."""


class StalenessProbe(Probe):
    """Reads by their outcome.

    Before each trial the place that is read holds one known value, and when everything has happened, another one. A read is
    stale when it holds the first, fresh when it holds the second, and torn otherwise. Counted naturally, and with a declared
    delay of whatever the read should wait for; the rate with the delay is no natural rate.

    trials: of each access. controls: natural trials of those that are safe. delay_ms: of the delayed ones.
    elements: in the tensor that is read.
    """

    def __init__(self, trials: Count = 200, controls: Count = 1000, delay_ms: Delay = 2.0, elements: Count = 16384) -> None:
        self._trials, self._controls, self._delay_s, self._elements = trials, controls, delay_ms / 1e3, elements

    def questions(self, machine: Machine) -> list[Question]:
        known = (make(machine, self._elements) for make in accesses.ALL)
        return [Question(access.name, partial(self._ask, access, machine), access.unsupported(machine)) for access in known]

    def _ask(self, access: Access, machine: Machine) -> Iterator[Observation]:
        with access.ready():
            yield from self._count(access, machine, "natural", self._controls if access.safe else self._trials, 0.0)
            yield from self._count(access, machine, f"delayed {self._delay_s * 1e3:g} ms", self._trials, self._delay_s)

    def _count(self, access: Access, machine: Machine, setting: str, trials: int, delay_s: float) -> Iterator[Observation]:
        outcomes: Counter[str] = Counter()
        for _ in range(trials):
            read = access.attempt(delay_s)
            if read is not None:
                outcomes[_outcome(read)] += 1
        yield Observation(setting, "safe", float(access.safe))
        yield Observation(setting, "trials", sum(outcomes.values()))
        for outcome in ("stale", "fresh", "torn"):
            yield Observation(setting, outcome, outcomes[outcome])


def _outcome(read: Read) -> str:
    if torch.equal(read.seen, read.fresh):
        return "fresh"
    return "stale" if torch.equal(read.seen, read.stale) else "torn"
