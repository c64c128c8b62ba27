"""A user's training step: the gradient that it leaves, the state that it changes, and the dtypes that it uses."""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.tensors.sharded import whole

_COLLECTIVES = ("c10d", "_c10d_functional", "fsdp")
"""Namespaces of operators that send."""
_PARAMETERS = ("gather", "broadcast", "copy_in", "copy_out", "chunk_cat")
"""Parts of the names of those that send parameters or buffers, or send nothing."""
_MOVES = frozenset({"_to_copy", "_to_dtype", "clone", "cat", "stack", "detach", "alias", "lift_fresh"})
"""Operators that compute nothing, and are no views."""
_FACTORIES = ("empty", "zeros", "ones", "full", "new_", "rand")


@dataclass
class Observed:
    """A step up to its optimizer: the floating dtypes that it uses, and how often it accumulates."""

    computed: set[torch.dtype] = field(default_factory=set)
    """Dtypes of the results of out-of-place operators. In-place operators scale and accumulate buffers."""
    sent: set[torch.dtype] = field(default_factory=set)
    """Dtypes that collectives reduce."""
    any: set[torch.dtype] = field(default_factory=set)
    """Dtypes of all results, casts included."""
    passes: int = 0
    """Backward passes that add to one parameter's `.grad`; 0 where that is not seen (FSDP)."""


class UserStep:
    """Calls the step, and returns the gradient of `model` that an optimizer would get.

    Where the step calls an optimizer, the gradient is taken as its `step()` begins (after the first call of a closure). The
    model's parameters and buffers, and the optimizers with their parameters, are restored after every call, so that every call
    computes the same gradient.
    """

    def __init__(self, step: Callable[[], object], model: nn.Module) -> None:
        self._step, self._model = step, model
        self._trained = parameters_of(model)
        self._tensors = _Snapshot([*model.parameters(), *model.buffers()])
        self._optimizers: dict[Optimizer, _OptimizerSnapshot] = {}
        self._caught: dict[int, Tensor] = {}
        self._passing: dict[int, Tensor] = {}
        """Gradients of parameters that the optimizer which steps does not hold: it may hold float32 copies of them."""
        self._watch: _Watch | None = None
        self._own = {id(parameter) for parameter in self._trained}
        self.updates = False
        """True once a call has changed a parameter."""

    def gradient(self) -> Tensor:
        """The gradient of one call: flat, on the CPU; zeros where there is none."""
        self._model.zero_grad(set_to_none=True)
        self._caught.clear()
        self._passing.clear()
        hook = register_optimizer_step_pre_hook(self._before_optimizer)
        try:
            self._step()
            return flat([whole(self._of(parameter)) for parameter in self._trained])
        finally:
            hook.remove()
            self._restore()

    def watched(self) -> Observed:
        """Call the step once, uncompiled, and return what was seen."""
        watch, passes = _Watch(), Counter[int]()
        hooks = [one.register_post_accumulate_grad_hook(lambda own: passes.update([id(own)])) for one in self._trained]
        self._watch = watch
        try:
            with _uncompiled(), watch:
                self.gradient()
        finally:
            self._watch = None
            for hook in hooks:
                hook.remove()
        watch.seen.passes = max(passes.values(), default=0)
        return watch.seen

    def _before_optimizer(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        if optimizer not in self._optimizers:
            self._optimizers[optimizer] = _OptimizerSnapshot(optimizer)
        _, *rest = args
        closure = kwargs.get("closure", rest[0] if rest else None)
        if closure is None:
            self._catch(optimizer)
            return None

        def caught() -> Any:
            loss = closure()
            self._catch(optimizer)
            return loss

        return (optimizer, caught, *rest[1:]), {name: value for name, value in kwargs.items() if name != "closure"}

    @torch.no_grad()
    def _catch(self, optimizer: Optimizer) -> None:
        """Keep the gradients as the optimizer gets them, unscaled where it is the one to unscale them."""
        if self._watch:
            self._watch.ended = True
        scale = getattr(optimizer, "grad_scale", None)
        for parameter in (one for group in optimizer.param_groups for one in group["params"]):
            if parameter.grad is not None and id(parameter) not in self._caught:
                self._caught[id(parameter)] = parameter.grad.detach().clone() if scale is None else parameter.grad / scale
        for parameter in self._trained:
            if parameter.grad is not None and id(parameter) not in self._caught:
                self._passing[id(parameter)] = parameter.grad.detach().clone()

    def _of(self, parameter: nn.Parameter) -> Tensor:
        left = parameter.grad if parameter.grad is not None else self._passing.get(id(parameter))
        gradient = self._caught.get(id(parameter), left)
        return torch.zeros_like(parameter) if gradient is None else gradient

    def _restore(self) -> None:
        changed = self._tensors.restore() & self._own
        for snapshot in self._optimizers.values():
            changed |= snapshot.restore()
        self.updates |= bool(changed)


class _Snapshot:
    """Copies of tensors, to be put back in place."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._kept = [(tensor, _local(tensor).detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> set[int]:
        """Put back what has changed; return the ids of those tensors."""
        changed = set()
        for tensor, before in self._kept:
            now = _local(tensor)
            if not torch.equal(now, before):
                changed.add(id(tensor))
                now.copy_(before)
        return changed


class _OptimizerSnapshot:
    """State, options and parameters of an optimizer, to be put back. `load_state_dict` would cast, and may communicate."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = _Snapshot(one for group in optimizer.param_groups for one in group["params"])
        self._state = {key: _copied(state) for key, state in optimizer.state.items()}
        self._groups = [_copied({name: group[name] for name in group if name != "params"}) for group in optimizer.param_groups]

    def restore(self) -> set[int]:
        """Put everything back; return the ids of the parameters that had changed."""
        for key in list(self._optimizer.state):
            if key not in self._state:
                del self._optimizer.state[key]
        for key, state in self._state.items():
            _put_back(self._optimizer.state[key], state)
        for group, before in zip(self._optimizer.param_groups, self._groups, strict=True):
            _put_back(group, before, keep=("params",))
        return self._parameters.restore()


def _copied(values: Any) -> Any:
    return {name: _copy(value) for name, value in values.items()} if isinstance(values, dict) else _copy(values)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


@torch.no_grad()
def _put_back(values: Any, before: Any, keep: Sequence[str] = ()) -> None:
    """Make a dict what it was: tensors in place, so that whoever holds them sees it."""
    if not isinstance(values, dict):
        return
    for name in [name for name in values if name not in before and name not in keep]:
        del values[name]
    for name, value in before.items():
        now = values.get(name)
        if isinstance(now, Tensor) and isinstance(value, Tensor) and now.shape == value.shape and now.dtype == value.dtype:
            now.copy_(value)
        else:
            values[name] = _copy(value)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions as they were written: under a dispatch mode dynamo would give them up for good."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _Watch(TorchDispatchMode):
    """Notes the floating dtypes of what operators return, in forward and in backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = Observed()
        self.ended = False
        """True once an optimizer steps: what it computes is no part of the gradient."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.ended:
            self._note(func, args, out)
        return out

    def _note(self, func: Any, args: Any, out: Any) -> None:
        name = func._schema.name.rpartition("::")[2]
        if func.namespace in _COLLECTIVES:
            self.seen.sent |= _floating(args) if not any(part in name for part in _PARAMETERS) else set()
            return
        found = _floating(out)
        self.seen.any |= found
        if not (func.is_view or func._schema.is_mutable or name in _MOVES or name.startswith(_FACTORIES)):
            self.seen.computed |= found


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


def _local(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this rank holds; any other tensor as it is."""
    part: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return part
