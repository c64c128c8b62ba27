"""The copies of the initial model: cast on the device that uses them."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.axes.workload.mlp_digits import MlpDigitsWorkload
from harness.rank.material import prepare

CPU, META = torch.device("cpu"), torch.device("meta")


class Copies(TorchDispatchMode):
    """Notes (device and dtype before, after) of each copy."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set[tuple[torch.device, torch.dtype, torch.device, torch.dtype]]()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        done = func(*args, **kwargs or {})
        if func is torch.ops.aten._to_copy.default:
            self.seen.add((args[0].device, args[0].dtype, done.device, done.dtype))
        return done


def test_a_model_is_cast_where_it_is_used() -> None:
    """torch casts on the host what it casts while it copies to another device, and sends the larger dtype."""
    with Copies() as copies:
        model = prepare(MlpDigitsWorkload(hidden=4), "mlp_digits", 0, 8).fresh_model(META, torch.float64)
    assert {(parameter.device, parameter.dtype) for parameter in model.parameters()} == {(META, torch.float64)}
    moved = {(CPU, torch.float32, META, torch.float32), (META, torch.float32, META, torch.float64)}
    assert {copy for copy in copies.seen if META in copy} == moved
