"""torch's FSDP2: parameters, gradients and optimizer states cut over the ranks."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FsdpAggregation(Aggregation):
    """fully_shard of every repeated block (the members of each nn.ModuleList) and of the rest: gathered in forward and again in
    backward, gradients averaged by reduce-scatter.

    reduce_dtype: fp32, bf16 or fp16, in which gradients are averaged; None: their own.
    """

    averages = True
    in_backward = True
    needs_a_pass = True
    needs_equal_use = True
    warm_up = 1

    def __init__(self, reduce_dtype: str | None = None) -> None:
        if reduce_dtype is not None and reduce_dtype not in _DTYPES:
            raise ValueError(f"reduce_dtype={reduce_dtype}: expected one of {', '.join(_DTYPES)}, or null")
        self._policy = MixedPrecisionPolicy(reduce_dtype=_DTYPES[reduce_dtype] if reduce_dtype else None)
        self.lossy = reduce_dtype is not None  # type: ignore[misc]  # narrower than what it holds, but for fp32 of fp32

    def begin(self, model: nn.Module, fabric: Fabric) -> "ShardedExchange":
        return ShardedExchange(model, fabric.group, self._policy)

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """While a block is at work: its parameters gathered and its gradients whole, beside the shards."""
        return 2 * sum(gradient.nbytes for gradient in gradients)


class ShardedExchange(Exchange):
    """A module that fully_shard has changed in place."""

    def __init__(self, model: nn.Module, group: ProcessGroup, policy: MixedPrecisionPolicy) -> None:
        # Meshes of one name are equal to DTensor's caches, which would bring back a group that has been replaced.
        names = (f"group{group.group_name}",)
        mesh = DeviceMesh.from_group(group, next(model.parameters()).device.type, mesh_dim_names=names)
        for block in [*_blocks(model), model]:
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
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _communicate(self, yes: bool) -> None:
        self._sharded.set_requires_gradient_sync(yes)
        self._sharded.set_reshard_after_backward(yes)
        self._sharded.set_reshard_after_forward(yes)
        self._sharded.set_reshard_after_forward(False, recurse=False)  # torch's own choice for the root


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Members of module lists that have parameters, and share none with the rest of the model (tied weights)."""
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    for modules in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
        for block in modules:
            own = Counter(parameter for module in block.modules() for parameter in module.parameters(recurse=False))
            if own and all(owners[parameter] == count for parameter, count in own.items()):
                yield block
