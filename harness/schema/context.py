"""Context: the facts by which an option says whether it can serve a case."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """Facts that are equal on all ranks, so that all ranks skip the same cases."""

    device: str
    """cpu or cuda."""
    backend: str
    """gloo or nccl: the process group that is measured."""
    world_size: int
    couples_samples: bool
    """Whether samples of a batch influence each other's output (BatchNorm in train mode)."""
    shard_sizes: tuple[int, ...]
    """Samples a rank."""
    denominators: tuple[float, ...]
    """What each rank's loss counts: samples, or tokens that count."""
