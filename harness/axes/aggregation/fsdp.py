"""torch's FSDP2: parameters, gradients and optimizer states cut over the ranks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.schema.context import Context
from harness.tensors.sharded import whole

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FsdpAggregation(Aggregation):
    """fully_shard of every repeated block (the members of the outermost nn.ModuleLists) and of the rest.

    Parameters are gathered in forward and again in backward, gradients averaged by reduce-scatter.

    blocks: False shards the model as one, for a model that reads its blocks' parameters without calling the blocks.
    reduce_dtype: fp32, bf16 or fp16, in which gradients are averaged; None: their own.
    """

    averages = True
    sums = False
    in_backward = True
    sends_gradients = False
    needs_a_pass = True
    needs_equal_use = True
    warm_up = 1

    def __init__(self, blocks: bool = True, reduce_dtype: Literal["fp32", "bf16", "fp16"] | None = None) -> None:
        self._by_block, self.sends = blocks, _DTYPES[reduce_dtype] if reduce_dtype else None

    def unsupported(self, context: Context) -> str | None:
        if context.strided:
            return f"fully_shard takes contiguous parameters alone; not contiguous: {', '.join(context.strided)}"
        return super().unsupported(context)

    def begin(self, model: nn.Module, fabric: Fabric) -> "ShardedExchange":
        blocks = list(_blocks(model)) if self._by_block else []
        return ShardedExchange(model, blocks, fabric.group, MixedPrecisionPolicy(reduce_dtype=self.sends))

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """While a block is at work: its parameters gathered and its gradients whole, beside the shards."""
        return 2 * sum(gradient.nbytes for gradient in gradients)


class ShardedExchange(Exchange):
    """A module that fully_shard has changed in place."""

    def __init__(self, model: nn.Module, blocks: list[nn.Module], group: ProcessGroup, policy: MixedPrecisionPolicy) -> None:
        # Meshes of one name are equal to DTensor's caches, which would bring back a group that has been replaced.
        names = (f"group{group.group_name}",)
        mesh = DeviceMesh.from_group(group, next(model.parameters()).device.type, mesh_dim_names=names)
        for block in [*blocks, model]:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        super().__init__(model)
        assert isinstance(model, FSDPModule)
        self._sharded = model

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Parameters stay gathered: ranks with different numbers of passes then ask for the same collectives."""
        self._communicate(False)
        try:
            yield
        finally:
            self._communicate(True)

    def rest(self) -> None:
        """The root stays gathered after forward: its parameters would not be those that the optimizer and zero_grad know."""
        self._sharded.reshard()

    def whole(self, tensor: Tensor) -> Tensor:
        return whole(tensor)

    def _communicate(self, yes: bool) -> None:
        self._sharded.set_requires_gradient_sync(yes)
        self._sharded.set_reshard_after_backward(yes)
        self._sharded.set_reshard_after_forward(yes)
        self._sharded.set_reshard_after_forward(False, recurse=False)  # torch's own choice for the root


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost module lists that have parameters, and share none with the rest of the model (tied weights)."""
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    for block in _members(model):
        own = Counter(parameter for module in block.modules() for parameter in module.parameters(recurse=False))
        if own and all(owners[parameter] == count for parameter, count in own.items()):
            yield block


def _members(module: nn.Module, *, listed: bool = False) -> Iterator[nn.Module]:
    """What stands in a module list and is no container itself: a container has no forward to gather parameters for."""
    if listed and not isinstance(module, _CONTAINERS):
        yield module
        return
    for child in module.children():
        yield from _members(child, listed=listed or isinstance(module, nn.ModuleList))
