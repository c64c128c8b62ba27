"""Gathering of DTensors."""

from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from harness.tensors import collectives


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor of a DTensor; all ranks of its mesh call it. Any other tensor is returned unchanged.

    A DTensor that is sharded along its first dimension over a mesh of one dimension (FSDP2's) is gathered here. The others go
    through torch's `full_tensor`, whose functional collectives end the process by SIGSEGV where gloo is given CUDA tensors
    (pytorch issue 132471; seen with torch 2.11): RuntimeError there.
    """
    if not hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, Shard  # 0.6 s, which a run without DTensors does not pay

    assert isinstance(tensor, DTensor)
    mesh, placements = tensor.device_mesh, tuple(tensor.placements)
    if placements == (Shard(0),):
        return _gathered(tensor.to_local(), tensor.shape, mesh.get_group())
    if mesh.device_type == "cuda" and any(dist.get_backend(mesh.get_group(each)) == "gloo" for each in range(mesh.ndim)):
        raise RuntimeError(f"a DTensor with placements {placements} on CUDA cannot be gathered over gloo; try backend=nccl")
    return tensor.full_tensor()


def _gathered(local: Tensor, shape: Sequence[int], group: ProcessGroup) -> Tensor:
    """Gather the rows of all ranks, in order of rank. Ranks have as many as the first; the last ones fewer or none."""
    rows = -(-shape[0] // dist.get_world_size(group))
    share = local.new_zeros(rows, *shape[1:])
    share[: local.shape[0]] = local
    padded = local.new_empty(rows * dist.get_world_size(group), *shape[1:])
    collectives.all_gather_single(padded, share, group=group)
    return padded[: shape[0]]
