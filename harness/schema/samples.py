"""Check of the rows of `samples`: durations of every rank, iteration, phase and clock."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from harness.schema.reading import NotWholeError
from harness.schema.record import ARRIVAL, CUDA_QUEUED

_MOST_PLACES = 2**20
"""Largest number of ranks of a world, and of iterations of a case."""
_MOST_KINDS = 2**10
"""Largest number of phases times clocks."""


def check_samples(rows: pa.Table) -> None:
    """Check that each rank, iteration, phase and clock has one row, that steps were measured, and that durations are >= 0.

    Durations of the clock cuda_queued are NaN in warm-ups, and where a hold ended early.
    """
    rank, iteration = (rows[name].to_numpy().astype(np.int64) for name in ("rank", "iteration"))
    (phase, phases), (clock, clocks) = _codes(rows["phase"]), _codes(rows["clock"])
    if len(rank) and (rank.min() < 0 or max(rank.max(), iteration.max()) >= _MOST_PLACES):
        raise NotWholeError("column rank, or iteration: expected whole numbers of at least 0")
    kind = clock * len(phases) + phase
    if len(phases) * len(clocks) > _MOST_KINDS:
        raise NotWholeError(f"more than {_MOST_KINDS} phases and clocks")
    kinds = _count(kind)
    expected = kinds * _count(rank) * _count(iteration)
    if rows.num_rows != expected or _count((rank * _MOST_PLACES + iteration) * _MOST_KINDS + kind) != expected:
        raise NotWholeError(f"expected one row a rank, iteration, phase and clock: {expected}; found {rows.num_rows}")
    measured = {(phases[k % len(phases)], clocks[k // len(phases)]) for k in np.unique(kind[~_flags(rows)]).tolist()}
    if not {("step", "host"), ("step", "cuda_event")} & measured:
        raise NotWholeError("no measured step")
    seconds = rows["seconds"].to_numpy()
    may_lack = np.isin(clock, [place for place, name in enumerate(clocks) if name == CUDA_QUEUED])
    if not np.isfinite(seconds[~(may_lack & np.isnan(seconds))]).all():
        raise NotWholeError("column seconds: expected finite seconds")
    if np.fmin.reduce(seconds[clock != (clocks.index(ARRIVAL) if ARRIVAL in clocks else -1)], initial=0.0) < 0:
        raise NotWholeError("column seconds: expected numbers of at least 0")


def _flags(rows: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(rows["warm_up"].to_numpy(), dtype=np.bool_)


def _count(values: NDArray[np.int64]) -> int:
    """Number of different values."""
    return int(pc.count_distinct(pa.array(values)).as_py())


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    """Return the index of each row's text, and the texts."""
    coded = (column if pa.types.is_dictionary(column.type) else column.dictionary_encode()).combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_pylist()
