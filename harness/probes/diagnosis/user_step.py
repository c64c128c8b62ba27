"""A training step of anyone's own: the gradient that it leaves, what it does beside, and the dtypes that it uses."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_COLLECTIVES = ("c10d", "_c10d_functional", "fsdp")
"""Namespaces of operators that send."""
_PARAMETERS = ("gather", "broadcast", "copy_in", "copy_out", "chunk_cat")
"""Parts of the names of those that send parameters or buffers, or send nothing."""
_MOVES = frozenset({"_to_copy", "_to_dtype", "clone", "cat", "stack", "detach", "alias", "lift_fresh"})
"""Operators that compute nothing, and are no views."""
_FACTORIES = ("empty", "zeros", "ones", "full", "new_", "rand")


@dataclass
class Dtypes:
    """Floating dtypes that a step was seen to use."""

    computed: set[torch.dtype] = field(default_factory=set)
    """Of results of operators that compute out of place. In-place ones scale and accumulate buffers."""
    sent: set[torch.dtype] = field(default_factory=set)
    """Of what collectives reduce."""
    any: set[torch.dtype] = field(default_factory=set)
    """Of every result, casts included."""


class UserStep:
    """Calls the step, and returns the gradient of `model` that an optimizer would get.

    Where the step calls an optimizer, the gradient is taken when its `step()` begins, and parameters and optimizer are put back
    afterwards, so that every call computes the same gradient.
    """

    def __init__(self, step: Callable[[], object], model: nn.Module) -> None:
        self._step, self._model = step, model
        self._trained = parameters_of(model)
        self._before = [_local(parameter).detach().clone() for parameter in self._trained]
        self._caught: dict[int, Tensor | None] = {}
        self._optimizers: dict[Optimizer, dict[str, Any]] = {}
        self.updates = False
        """True once a call has changed a parameter."""

    def gradient(self) -> Tensor:
        """The gradient of one call: flat, on the CPU; zeros where there is none."""
        self._model.zero_grad(set_to_none=True)
        self._caught.clear()
        door = register_optimizer_step_pre_hook(self._at_the_optimizer)
        try:
            self._step()
        finally:
            door.remove()
        found = flat([_whole(self._of(parameter)) for parameter in self._trained])
        self._restore()
        return found

    def watched(self) -> Dtypes:
        """Call the step once, and return the dtypes that it uses."""
        watch = _Watch()
        with watch:
            self.gradient()
        return watch.dtypes

    def _at_the_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._optimizers:
            self._optimizers[optimizer] = copy.deepcopy(optimizer.state_dict())
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                self._caught.setdefault(id(parameter), None if gradient is None else gradient.detach().clone())

    def _of(self, parameter: nn.Parameter) -> Tensor:
        gradient = self._caught.get(id(parameter), parameter.grad)
        return torch.zeros_like(parameter) if gradient is None else gradient

    @torch.no_grad()
    def _restore(self) -> None:
        for optimizer, state in self._optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state))
        for parameter, before in zip(self._trained, self._before, strict=True):
            now = _local(parameter)
            if not torch.equal(now, before):
                self.updates = True
                now.copy_(before)


class _Watch(TorchDispatchMode):
    """Notes the floating dtypes of what operators return, in forward and in backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes = Dtypes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in _COLLECTIVES:
            if not any(part in func._schema.name for part in _PARAMETERS):
                self.dtypes.sent |= _floating(args)
            return out
        found = _floating(out)
        self.dtypes.any |= found
        if not (func.is_view or func._schema.is_mutable or _moves(func)):
            self.dtypes.computed |= found
        return out


def _moves(func: Any) -> bool:
    name = func._schema.name.rpartition("::")[2]
    return name in _MOVES or name.startswith(_FACTORIES)


def _floating(tree: Any) -> set[torch.dtype]:
    return {leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()}


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that get a gradient. Raises ValueError where there is none."""
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("the model has no parameter that gets a gradient")
    return found


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as one vector on the CPU."""
    return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])


def _local(parameter: Tensor) -> Tensor:
    """The part of a DTensor that this rank holds."""
    held: Tensor = getattr(parameter, "to_local", lambda: parameter)()
    return held


def _whole(gradient: Tensor) -> Tensor:
    """A DTensor in one piece."""
    gathered: Tensor = getattr(gradient, "full_tensor", lambda: gradient)()
    return gathered
