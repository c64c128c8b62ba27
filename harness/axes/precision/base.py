"""Precision: the dtype of the parameters, and the flags and the dtypes in which they are computed with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from torch.amp import GradScaler

from harness.schema.context import Option

T = TypeVar("T")


class Precision(Option):
    """One way of representing and computing."""

    parameter_dtype: ClassVar[torch.dtype]
    autocast_dtype: ClassVar[torch.dtype | None] = None
    """What torch.autocast computes matrix products in, around forward and loss; None: no autocast."""

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()

    def rounded(self, tensor: Tensor) -> Tensor | None:
        """A floating tensor [...] as the coarsest dtype of this precision rounds it; None where that is float32 or finer."""
        coarse = self.autocast_dtype or self.parameter_dtype
        return tensor.to(coarse).to(tensor.dtype) if coarse.itemsize < torch.float32.itemsize else None

    def scaler(self, device: torch.device, scale: float | None = None) -> GradScaler | None:
        """What scales the loss so that its gradients do not underflow, from `scale` on; made for each case."""
        return None


@contextmanager
def tf32(allow: bool) -> Iterator[None]:
    """Compute float32 matrix products and convolutions in TF32, or in IEEE float32; afterwards the settings are as before."""
    cudnn, owners = torch.backends.cudnn, _fp32_owners()
    older = _readable(torch.get_float32_matmul_precision, "highest"), _readable(lambda: cudnn.allow_tf32, True)
    newer = _own_precisions(owners)
    try:
        _write(("high", True) if allow else ("highest", False), owners, ["tf32" if allow else "ieee"] * len(owners))
        yield
    finally:
        _write(older, owners, newer)


def _fp32_owners() -> list[Any]:
    """Return what has a precision of its own since torch 2.9; until it is written, it inherits the one of all backends."""
    if not hasattr(torch.backends, "fp32_precision"):
        return []
    cudnn: Any = torch.backends.cudnn
    mkldnn: Any = torch.backends.mkldnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]


def _own_precisions(owners: list[Any]) -> list[str]:
    """Return the precision of each owner itself, `none` where it inherits: torch shows the one that is inherited."""
    backends: Any = torch.backends
    parents = [backends, backends.cudnn] if owners else []  # writing that of all of mkldnn writes that of all backends
    inherited = []
    for parent in parents:  # the second inherits from the first
        inherited.append(parent.fp32_precision)
        parent.fp32_precision = "none"
    own = [owner.fp32_precision for owner in owners]
    for parent, precision in zip(parents, inherited, strict=True):
        parent.fp32_precision = precision
    return own


def _readable(read: Callable[[], T], otherwise: T) -> T:
    """Read an older setting; return torch's default where torch refuses, because the newer ones say otherwise and hold."""
    try:
        return read()
    except RuntimeError:
        return otherwise


def _write(older: tuple[str, bool], owners: list[Any], newer: list[str]) -> None:
    """Write the older settings first, as they set some of the newer ones. torch.compile reads both: they must agree."""
    torch.set_float32_matmul_precision(older[0])
    torch.backends.cudnn.allow_tf32 = older[1]
    for owner, precision in zip(owners, newer, strict=True):
        owner.fp32_precision = precision
