"""DistributedDataParallel around a case's model: what the options that are variants of it share."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.schema.parameters import Positive
from harness.tensors import collectives


class ReplicatedExchange(Exchange):
    """Backward averages by itself; `finish` has nothing left to do."""

    model: DistributedDataParallel

    def __init__(self, model: DistributedDataParallel, group: ProcessGroup) -> None:
        super().__init__(model)
        self._group = group

    def accumulating(self) -> AbstractContextManager[Any]:
        return self.model.no_sync()

    def sent(self, gradients: list[Tensor]) -> list[Tensor]:
        """Buckets of gradients times 1/W, rounded in their dtype."""
        return [bucket.mul_(1.0 / self._group.size()) for bucket in self.received(gradients)]

    def received(self, gradients: list[Tensor]) -> list[Tensor]:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return [
            torch.cat([_in_memory(gradients[place], trained[place]) for place in bucket]) for bucket in self._buckets(gradients)
        ]

    def total(self, tensors: list[Tensor]) -> None:
        for bucket in tensors:
            collectives.all_reduce(bucket, group=self._group)

    def _buckets(self, gradients: list[Tensor]) -> list[list[int]]:
        """As its reducer tells them: by place once it has built them anew; before, by size, along the parameters."""
        told = self.model._get_ddp_logging_data()
        if told.get("rebuilt_per_bucket_param_indices"):
            return [[int(place) for place in bucket.split()] for bucket in told["rebuilt_per_bucket_param_indices"].split(",")]
        sizes, places = [int(size) for size in reversed(told["bucket_sizes"].split(","))], iter(range(len(gradients)))
        return [_upto(size, places, gradients) for size in sizes]


class Replicated(Aggregation):
    """Averages in buckets of up to `bucket_cap_mb` MiB during backward. The first iteration has one bucket: warm up twice.

    Of several backward passes it communicates in the last one, and only if that one has a synced forward of its own.
    """

    averages = True
    in_backward = True
    needs_own_forward = True
    needs_a_pass = True
    warm_up = 1

    def __init__(self, bucket_cap_mb: Positive = 25.0) -> None:
        self._bucket_cap_mb = bucket_cap_mb

    def begin(self, model: nn.Module, fabric: Fabric) -> ReplicatedExchange:
        device = next(model.parameters()).device
        replica = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            process_group=fabric.group,
            bucket_cap_mb=self._bucket_cap_mb,
            find_unused_parameters=fabric.some_unused and self.accumulates,  # a static graph finds them by itself
            static_graph=not self.accumulates,
        )
        self.register(replica, fabric)
        return ReplicatedExchange(replica, fabric.group)

    def register(self, replica: DistributedDataParallel, fabric: Fabric) -> None:
        """Give it the communication hook of the variant."""

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Its buckets hold every gradient a second time."""
        return sum(gradient.nbytes for gradient in gradients)


def _upto(size: int, places: Iterator[int], gradients: list[Tensor]) -> list[int]:
    """The next places, whose gradients have so many bytes together. Raises IndexError where there are none."""
    bucket: list[int] = []
    while sum(gradients[place].nbytes for place in bucket) < size:
        bucket.append(next(places, len(gradients)))
    return bucket


def _in_memory(gradient: Tensor, parameter: nn.Parameter) -> Tensor:
    """Its elements in the order of a bucket, flat: that of the parameter's memory (channels_last, for instance)."""
    return gradient.permute(sorted(range(gradient.dim()), key=parameter.stride, reverse=True)).flatten()
