"""Context: the facts by which an option says whether it can serve a case. Option: what every option of every axis can say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """Facts that are equal on all ranks, so that all ranks skip the same cases."""

    device: str
    """cpu or cuda."""
    backend: str
    """gloo or nccl: the process group that is measured."""
    world_size: int
    spans_ranks: bool
    """Whether the aggregation sums over ranks."""
    averages: bool
    """Whether the aggregation leaves the mean over ranks, not the sum."""
    in_backward: bool
    """Whether the aggregation communicates during backward."""
    couples_samples: bool
    """Whether samples of a batch influence each other's output (BatchNorm in train mode)."""
    shard_sizes: tuple[int, ...]
    """Samples a rank."""
    denominators: tuple[float, ...]
    """What each rank's loss counts: samples, or tokens that count."""


class Option:
    """An option of an axis; the base of each axis's own base."""

    def unsupported(self, context: Context) -> str | None:
        """Why this option cannot serve the case, from facts that are equal on all ranks; None when it can."""
        return None
