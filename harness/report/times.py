"""A case's samples as arrays: seconds of every phase, iteration and rank, and what is derived from them iteration by
iteration."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.report.statistics import Blocks, Floats
from harness.schema.record import ARRIVAL, CUDA_EVENT, CUDA_QUEUED, HOST

STEP, AGGREGATE = "step", "aggregate"
STEP_ALONE, COLLECTIVE_ALONE = "step_alone", "collective_alone"
SKEW, TRANSFER, EXPOSED = "skew", "transfer", "exposed"
"""Derived: waiting for the last rank, what is left of `aggregate`, and what communication adds to a step."""

Key = tuple[str, str]
"""(clock, phase)."""


@dataclass(frozen=True)
class Times:
    """The measured iterations of one case, warm-ups left out, in the order in which they ran."""

    ranks: NDArray[np.int64]
    """The ranks, in order."""
    blocks: Blocks
    seconds: dict[Key, Floats]
    """[iterations, ranks] each; NaN where a rank has no number."""

    @property
    def clock(self) -> str:
        """The clock that a case is judged by: on CUDA the device's, launches included, for this is what a user waits for.

        The host may see the launches alone there, and `cuda_queued` leaves them out.
        """
        return CUDA_EVENT if (CUDA_EVENT, STEP) in self.seconds else HOST

    @cached_property
    def phases(self) -> dict[Key, Floats]:
        """`seconds`, and per rank what is derived: without `arrival`, which tells when and not how long."""
        measured = {key: seconds for key, seconds in self.seconds.items() if key[0] != ARRIVAL}
        return measured | dict(self._split())

    @cached_property
    def slowest(self) -> dict[Key, Floats]:
        """[iterations]: of the slowest rank in each iteration; and what communication adds to the slowest rank's step."""
        slowest = {key: np.fmax.reduce(seconds, axis=1) for key, seconds in self.phases.items()}
        for clock in (self.clock, CUDA_QUEUED):
            alone, step = slowest.get((clock, STEP_ALONE)), slowest.get((clock, STEP))
            if alone is not None and step is not None and np.isfinite(step - alone).any():
                slowest[clock, EXPOSED] = step - alone
        return slowest

    def _split(self) -> Iterator[tuple[Key, Floats]]:
        """`aggregate` as waiting for the last rank and the rest. Both of a rank's own, so their sum is its `aggregate`."""
        arrival, key = self.seconds.get((ARRIVAL, AGGREGATE)), (self.clock, AGGREGATE)
        if arrival is None or key not in self.seconds:
            return
        skew = np.fmax.reduce(arrival, axis=1)[:, None] - arrival
        yield (self.clock, SKEW), skew
        yield (self.clock, TRANSFER), self.seconds[key] - skew


def times_of(samples: pa.Table) -> Times:
    """Raw rows to arrays; see docs/run_directory.md for the columns. One pass, no row becomes a Python object."""
    samples = samples.filter(pc.invert(samples["warm_up"]))
    iteration, launch = _column(samples, "iteration"), _column(samples, "launch")
    span = int(iteration.max(initial=0)) + 1
    order, first, row = np.unique(launch * span + iteration, return_index=True, return_inverse=True)
    ranks, column = np.unique(_column(samples, "rank"), return_inverse=True)
    phases, phase = _coded(samples, "phase")
    clocks, clock = _coded(samples, "clock")
    kind, seconds = clock * len(phases) + phase, samples["seconds"].to_numpy()
    tables = np.full((len(clocks) * len(phases), len(order), len(ranks)), np.nan)
    tables[kind, row, column] = seconds
    return Times(
        ranks=ranks,
        blocks=Blocks(launch[first], _column(samples, "visit")[first]),
        seconds={
            (clocks[k // len(phases)], phases[k % len(phases)]): tables[k]
            for k in np.unique(kind).tolist()
            if np.isfinite(tables[k]).any()
        },
    )


def _column(samples: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(samples[name].to_numpy(), dtype=np.int64)


def _coded(samples: pa.Table, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The different texts of a column, and their numbers row by row."""
    column = samples[name]
    coded = (
        (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).unify_dictionaries().combine_chunks()
    )
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)
