"""Collectives on tensors that are not contiguous, and alike on some ranks only."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from harness.probes.control import Control
from harness.rank.process_group import World
from harness.tensors import collectives
from harness.tensors.sharded import whole

ROWS, COLUMNS = 6, 4
"""Values of each kind; two and three ranks divide the rows."""
_BEYOND = 1e6
"""Value of the other columns."""


def layouts(value: Tensor) -> dict[str, Tensor]:
    """Return the value [rows, columns] as a column of a larger tensor and as a transposed view."""
    wide = torch.full((*value.shape, 3), _BEYOND, dtype=value.dtype)
    wide[..., 1] = value
    return {"column": wide[..., 1], "transposed": value.t().contiguous().t()}


def wrong(world: World) -> list[str]:
    """Return which collective leaves which layout wrong on some rank."""
    values = [torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS) + 100 * rank for rank in range(world.size)]
    found = [
        f"{collective} {name}"
        for name in ("column", "transposed", "mixed")
        for collective, check in _checks(world, name, values).items()
        if not check()
    ]
    return sorted({text for texts in world.control.all_gather_text("\n".join(found)) for text in texts.splitlines()})


def _checks(world: World, name: str, values: list[Tensor]) -> dict[str, Callable[[], bool]]:
    group, rank, total = world.measured, world.rank, sum(values, torch.zeros(ROWS, COLUMNS))

    def laid(value: Tensor) -> Tensor:
        """Return the value in the layout; mixed: in another one on every rank."""
        kinds = {**layouts(value), "plain": value.clone()}
        return kinds[name] if name in kinds else list(kinds.values())[rank % 3]

    def reduced(call: Callable[[Tensor], object], right: Tensor) -> bool:
        tensor = laid(values[rank])
        before = tensor.stride()
        call(tensor)
        return torch.equal(tensor, right) and tensor.stride() == before and _beside(tensor)

    def started(tensor: Tensor) -> None:
        collectives.all_reduce(tensor, group=group, async_op=True).wait()

    def sum_on_0(tensor: Tensor) -> None:
        collectives.reduce_to(tensor, 0, group)
        tensor.copy_(total if rank else tensor)

    def sent_around(tensor: Tensor) -> None:
        control = world.control
        if rank == 0:
            for other in range(1, world.size):
                control.send(tensor, other)
        else:
            control.receive(tensor, 0)

    control: Control = world.control
    flat = [value.flatten() for value in values]
    return {
        "all_reduce": lambda: reduced(lambda one: collectives.all_reduce(one, group=group), total),
        "all_reduce, asynchronous": lambda: reduced(started, total),
        "all_reduce, coalesced": lambda: reduced(lambda one: collectives.all_reduce_coalesced([one], group), total),
        "reduce": lambda: reduced(sum_on_0, total),
        "broadcast": lambda: reduced(lambda one: collectives.broadcast(one, 0, group), values[0]),
        "send and receive": lambda: reduced(sent_around, values[0]),
        "control.broadcast": lambda: reduced(control.broadcast, values[0]),
        "all_gather": lambda: _equal(control.all_gather(laid(values[rank])), values),
        "gather": lambda: _equal(control.gather(laid(values[rank])), values if rank == 0 else []),
        "all_gather_single": lambda: _gathered(world, laid, flat),
        "reduce_scatter_single": lambda: _scattered(world, laid, total.flatten()),
    }


def _equal(found: list[Tensor], right: list[Tensor]) -> bool:
    return len(found) == len(right) and all(torch.equal(one, other) for one, other in zip(found, right, strict=True))


def _beside(tensor: Tensor) -> bool:
    """Return True if what stands beside a column is as it was."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return True
    wide = tensor.as_strided((tensor.numel(), 3), (3, 1), 0)
    return bool((wide[:, [0, 2]] == _BEYOND).all())


def _gathered(world: World, laid: Callable[[Tensor], Tensor], flat: list[Tensor]) -> bool:
    whole = laid(torch.zeros(ROWS, COLUMNS))[:, 0]
    share = ROWS // world.size
    collectives.all_gather_single(whole, flat[world.rank][::2][:share], group=world.measured)
    return torch.equal(whole, torch.cat([one[::2][:share] for one in flat]))


def _scattered(world: World, laid: Callable[[Tensor], Tensor], total: Tensor) -> bool:
    share = laid(torch.zeros(ROWS, COLUMNS))[: ROWS // world.size, 0]
    whole = laid(torch.arange(float(ROWS * COLUMNS)).reshape(ROWS, COLUMNS) + 100 * world.rank)[:, 1]
    collectives.reduce_scatter_single(share, whole, group=world.measured)
    right = total.reshape(ROWS, COLUMNS)[:, 1]
    return torch.equal(share, right[world.rank * len(share) :][: len(share)])


def in_pieces(world: World) -> list[str]:
    """Return the DTensors, by shape and placement, that are not whole on some rank after gathering."""
    mesh = DeviceMesh.from_group(world.measured, "cpu", mesh_dim_names=("pieces",))
    found = []
    for shape in ((6, 4), (5, 3, 2), (1, 4), (7,), (0, 4)):
        for placement in (Shard(0), Replicate(), *[Shard(1)] * (len(shape) > 1)):
            value = torch.arange(float(math.prod(shape))).reshape(shape)
            pieces = distribute_tensor(value, mesh, [placement])
            with patch.object(DTensor, "full_tensor", None) if placement == Shard(0) else nullcontext():
                if not torch.equal(whole(pieces), value):
                    found.append(f"{shape} {placement}")
    return sorted({text for texts in world.control.all_gather_text("\n".join(found)) for text in texts.splitlines()})
