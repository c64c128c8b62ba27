"""Collectives on dense memory: the one place where tensors of ours are handed to torch.distributed.

Several of gloo's collectives read and write the memory behind a tensor's first element, whatever the strides are. all_reduce,
reduce and broadcast are silently wrong on a column of a larger tensor in torch 2.8 and 2.13, gather in torch 2.8 (pytorch
issues 192920 and 158902). Ranks whose tensors are dense but have unequal strides are summed wrongly by every backend (pytorch
issue 62283). A tensor that is not contiguous therefore travels as a contiguous copy, and the result is copied back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# torch 2.13 warns of the older names, and torch 2.8 has no others.
_all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Pending(Protocol):
    """A collective that has been started."""

    def wait(self) -> Any: ...


@dataclass(frozen=True)
class _CopyingBack:
    """A collective on a copy, which `wait` copies back."""

    work: Pending
    copied: Tensor
    tensor: Tensor

    def wait(self) -> None:
        self.work.wait()
        self.tensor.copy_(self.copied)


@contextmanager
def dense(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield contiguous tensors with the same values. Those that had to be copied are copied back at the end."""
    held = [tensor.contiguous() for tensor in tensors]
    yield held
    for tensor, own in zip(tensors, held, strict=True):
        _copy_back(tensor, own)


def all_reduce(tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Leave in `tensor` the sum over ranks, or what `op` asks for. Returns what to wait for where `async_op`."""
    own = tensor.contiguous()
    return _done(tensor, own, dist.all_reduce(own, op=op, group=group, async_op=async_op))


def all_reduce_coalesced(tensors: Sequence[Tensor], group: ProcessGroup | None = None) -> None:
    """Leave in each of the tensors, which have one dtype, its sum over ranks: one call of the backend for all."""
    with dense(tensors) as held, dist._coalescing_manager(group):
        for own in held:
            dist.all_reduce(own, group=group)


def reduce_to(tensor: Tensor, group_dst: int, group: ProcessGroup | None = None) -> None:
    """Leave in `tensor` of rank `group_dst` the sum over ranks; the other ranks' hold anything afterwards."""
    own = tensor.contiguous()
    dist.reduce(own, group_dst=group_dst, group=group)
    _copy_back(tensor, own)


def broadcast(tensor: Tensor, group_src: int, group: ProcessGroup | None = None) -> None:
    """Leave in `tensor` rank `group_src`'s."""
    own = tensor.contiguous()
    dist.broadcast(own, group_src=group_src, group=group)
    _copy_back(tensor, own)


def all_gather(tensor: Tensor, group: ProcessGroup | None = None) -> list[Tensor]:
    """New tensors: every rank's, in order of rank."""
    own = tensor.contiguous()
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return everyone


def gather(tensor: Tensor, group_dst: int, group: ProcessGroup | None = None) -> list[Tensor]:
    """New tensors: every rank's, in order of rank, on rank `group_dst`; nothing elsewhere."""
    own = tensor.contiguous()
    receives = dist.get_rank(group) == group_dst
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))] if receives else None
    dist.gather(own, everyone, group_dst=group_dst, group=group)
    return everyone or []


def all_gather_single(whole: Tensor, share: Tensor, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Leave in `whole` [elements] every rank's `share` [elements / W], in order of rank."""
    own = whole.contiguous()
    return _done(whole, own, _all_gather_single(own, share.contiguous(), group=group, async_op=async_op))


def reduce_scatter_single(share: Tensor, whole: Tensor, group: ProcessGroup | None = None, async_op: bool = False) -> Any:
    """Leave in `share` [elements / W] this rank's part of the sum of every rank's `whole` [elements]."""
    own = share.contiguous()
    return _done(share, own, _reduce_scatter_single(own, whole.contiguous(), group=group, async_op=async_op))


def send(tensor: Tensor, group_dst: int, group: ProcessGroup | None = None) -> None:
    """Hand a tensor to rank `group_dst`, which takes it with `receive`."""
    dist.send(tensor.contiguous(), group_dst=group_dst, group=group)


def receive(tensor: Tensor, group_src: int, group: ProcessGroup | None = None) -> None:
    """Leave in `tensor` what rank `group_src` sends."""
    own = tensor.contiguous()
    dist.recv(own, group_src=group_src, group=group)
    _copy_back(tensor, own)


def _done(tensor: Tensor, own: Tensor, work: Pending | None) -> Pending | None:
    if own is tensor:
        return work
    if work is not None:
        return _CopyingBack(work, own, tensor)
    tensor.copy_(own)
    return None


def _copy_back(tensor: Tensor, own: Tensor) -> None:
    if own is not tensor:
        tensor.copy_(own)
