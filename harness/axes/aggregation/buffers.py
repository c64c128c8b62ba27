"""Flat buffers: several gradients as one tensor, and back. What options that communicate in buffers share."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from harness.axes.aggregation.base import Aggregation, Fabric, FollowingSync
from harness.schema.parameters import Bytes
from harness.tensors import collectives


class InBuckets(Aggregation):
    """Gradients in buffers of up to `bytes`, in the order of the parameters."""

    def __init__(self, bytes: Bytes) -> None:  # noqa: A002
        self._bytes = bytes

    def buckets(self, gradients: list[Tensor]) -> Iterator[list[Tensor]]:
        """Runs of gradients of one dtype, as many as fit, and at least one."""
        bucket: list[Tensor] = []
        for gradient in gradients:
            full = sum(held.nbytes for held in bucket) + gradient.nbytes > self._bytes
            if bucket and (full or bucket[0].dtype != gradient.dtype):
                yield bucket
                bucket = []
            bucket.append(gradient)
        if bucket:
            yield bucket


class BucketByBucket(InBuckets, FollowingSync):
    """One all-reduce a bucket."""

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for bucket in self.buckets(gradients):
            issue_flat(bucket, fabric)


def flatten(gradients: list[Tensor], *, multiple: int = 1) -> Tensor:
    """A new tensor [elements] with all gradients, one after the other; padded with zeros to a multiple of `multiple`."""
    elements = sum(gradient.numel() for gradient in gradients)
    flat = gradients[0].new_zeros(elements + -elements % multiple)
    torch._foreach_copy_(_views(flat, gradients), gradients)
    return flat


def unflatten(flat: Tensor, gradients: list[Tensor]) -> None:
    """Copy a flat buffer back."""
    torch._foreach_copy_(gradients, _views(flat, gradients))


def issue_flat(gradients: list[Tensor], fabric: Fabric) -> None:
    """Sum them over the ranks in one buffer, and copy them back once it is there."""
    buffer = flatten(gradients)
    fabric.issue(partial(collectives.all_reduce, buffer, group=fabric.group), then=partial(unflatten, buffer, gradients))


def by_dtype(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one dtype together."""
    for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
        yield [gradient for gradient in gradients if gradient.dtype == dtype]


def _views(flat: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    sizes = [gradient.numel() for gradient in gradients]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.view(gradient.shape) for part, gradient in zip(parts, gradients, strict=True)]
