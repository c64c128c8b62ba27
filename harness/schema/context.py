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
    coupling: tuple[str, ...]
    """By what a sample's output depends on the batch that it is in: BatchNorm (in train mode), dropout. Mostly nothing."""
    shard_sizes: tuple[int, ...]
    """Samples a rank."""
    denominators: tuple[float, ...]
    """What each rank's loss counts: samples, or tokens that count."""
    passes: tuple[int, ...] = (1,)
    """Backward passes that each rank makes in an iteration."""
    ranks_per_node: int = 1
    """As torchrun started them; 0 where not every node has as many."""
    unequal_use: bool = False
    """Whether some rank's batch gives a gradient to parameters to which another's gives none."""
    varying_use: bool = False
    """Whether a rank's batches, or their parts, differ in the parameters that they give a gradient to."""
    follows_sync: bool = False
    """Whether the aggregation leaves it to the sync policy when to wait for its collectives."""
    scales_loss: bool = False
    """Whether the precision scales the loss, and unscales the gradient after the aggregation."""
    strided: tuple[str, ...] = ()
    """Names of the model's parameters that are not contiguous."""
    separates_samples: bool = False
    """Whether the reduction takes samples one by one by torch.func, and not by backward."""


class Option:
    """An option of an axis; the base of each axis's own base."""

    changed_settings: tuple[str, ...] = ()
    """Settings of the process that making the option changed, and that were put back."""

    def unsupported(self, context: Context) -> str | None:
        """Why this option cannot serve the case, from facts that are equal on all ranks; None when it can."""
        return None
