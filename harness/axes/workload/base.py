"""Workload: a model, a loss and real batches. What varies here is the function that is differentiated."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from harness.schema.context import Option
from harness.schema.parameters import Count
from harness.tensors.bits import bits

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """Samples along the first dimension of every tensor: `model(*inputs)` is held against `target`."""

    inputs: tuple[Tensor, ...]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: slice | Tensor) -> "Batch":
        return Batch(tuple(x[index] for x in self.inputs), self.target[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on `device`; floating tensors become `dtype`."""
        return Batch(tuple(_cast(x, device, dtype) for x in self.inputs), _cast(self.target, device, dtype))


class Criterion:
    """A loss under its three reductions.

    `loss(reduction=...)` makes the function for "none", "sum" and "mean", as the losses of torch.nn do; "none" keeps the
    samples along its first dimension. A loss whose mean is not taken over samples, elements of the target or classes as
    torch.nn counts them has a method `terms(target)`: a Tensor [samples] of what each sample counts.
    """

    def __init__(self, loss: Callable[..., LossFunction]) -> None:
        self.none, self.sum, self.mean = (loss(reduction=reduction) for reduction in ("none", "sum", "mean"))

    def to(self, device: torch.device, dtype: torch.dtype) -> "Criterion":
        """Move what the loss holds (class weights) to `device`; floating tensors become `dtype`."""
        for loss in (self.none, self.sum, self.mean):
            if isinstance(loss, nn.Module):
                loss.to(device, dtype)
        return self

    def terms(self, target: Tensor) -> Tensor:
        """What each sample counts in the denominator of the mean: float64 [samples].

        Cross entropy counts targets that are not ignored, by their class weights where it has any (torch.nn.CrossEntropyLoss,
        "reduction"); other losses of torch.nn count every element of the target.
        """
        own = getattr(self.sum, "terms", None)
        if own is not None:
            return torch.as_tensor(own(target), dtype=torch.float64)
        counted = self._counted(target).double()
        return counted.reshape(len(target), -1).sum(1) if len(target) else counted.reshape(0)

    def _counted(self, target: Tensor) -> Tensor:
        if not isinstance(self.sum, nn.CrossEntropyLoss | nn.NLLLoss):
            return torch.ones_like(target, dtype=torch.float64)
        if target.is_floating_point():  # class probabilities [samples, classes, ...]: one term a position
            return torch.ones_like(target.select(1, 0), dtype=torch.float64)
        counts = target != self.sum.ignore_index
        if self.sum.weight is None:
            return counts
        weight = self.sum.weight.to(target.device, torch.float64)
        return counts * weight[target.where(counts, torch.zeros_like(target))]


class Workload(Option):
    """A model, a loss and data, each given as what makes it, so that every rank makes the same.

    model: makes the module; its random numbers come from the run's seed.
    loss: `loss(reduction=...)`, see Criterion.
    data: makes the data set, as (input, ..., target): tensors with the samples along their first dimension.
    samples: in the global batch; None: global_batch_size.
    """

    def __init__(
        self,
        *,
        model: Callable[[], nn.Module],
        loss: Callable[..., LossFunction],
        data: Callable[[], tuple[Tensor, ...]],
        samples: Count | None = None,
    ) -> None:
        self._model, self._loss, self._data, self.samples = model, loss, data, samples

    def build_model(self, seed: int) -> nn.Module:
        """The module, on the CPU, with the parameters that `seed` gives, in the modes (train, eval) that its maker left."""
        with seeded(seed):
            return self._model()

    def build_criterion(self) -> Criterion:
        """The loss under its three reductions."""
        return Criterion(self._loss)

    def load_data(self, seed: int) -> Batch:
        """The whole data set; `seed` is for data that are drawn. Raises ValueError when it is not tensors of equal lengths."""
        with seeded(seed):
            *inputs, target = self._data()
        for place, tensor in enumerate((*inputs, target)):
            _check_tensor(tensor, "the target" if place == len(inputs) else f"input {place}")
        lengths = {len(x) for x in (*inputs, target)}
        if not inputs or len(lengths) != 1:
            raise ValueError(f"data: expected (input, ..., target) with one number of samples, got lengths {sorted(lengths)}")
        return Batch(tuple(inputs), target)


def draw(data: Batch, size: int, seed: int) -> Batch:
    """A batch of `size` different samples. Raises ValueError when the data set is smaller."""
    if size > len(data):
        raise ValueError(f"global_batch_size={size}: the data set has {len(data)} samples")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data[order[:size]]


def coupling(model: nn.Module) -> tuple[str, ...]:
    """By what a sample's output depends on the batch that it is in: statistics over it, or masks drawn by place."""
    training = [module for module in model.modules() if module.training]
    kinds = {
        "BatchNorm": any(isinstance(module, _BatchNorm) for module in training),
        "dropout": any(isinstance(module, _DropoutNd) and module.p > 0 for module in training),
    }
    return tuple(kind for kind, found in kinds.items() if found)


def fingerprint(batch: Batch) -> str:
    """SHA-256 of the bits of all tensors of a batch or a data set."""
    digest = hashlib.sha256()
    for tensor in (*batch.inputs, batch.target):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(bits(tensor).numpy().tobytes())
    return digest.hexdigest()


def _check_tensor(tensor: object, what: str) -> None:
    """Raise ValueError unless batches can be drawn from it by index."""
    if not isinstance(tensor, Tensor):
        kind = f"a {type(tensor).__name__}"
    elif tensor.is_nested:
        kind = "a nested tensor"
    elif tensor.layout != torch.strided:
        kind = f"a tensor of layout {str(tensor.layout).removeprefix('torch.')}"
    elif not tensor.dim():
        kind = "a tensor without dimensions"
    else:
        return
    raise ValueError(
        f"data: {what} is {kind}; accepted: (input, ..., target), dense tensors with the samples along their first dimension; "
        "try one tensor for each input, padded where samples differ in length"
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from `seed`; afterwards the generator is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _cast(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)
