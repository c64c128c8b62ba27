"""Batches of anyone's making: tensors, or tuples, lists and dicts of them, with the samples along the first dimension."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor in it changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: each_tensor(value, change) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        values = [each_tensor(value, change) for value in batch]
        return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (Mapping, tuple, list)):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(value)


def length_of(batch: Any) -> int:
    """Samples."""
    return max((len(tensor) for tensor in _tensors(batch) if tensor.dim()), default=0)


def picked(batch: Any, index: Tensor) -> Any:
    """The samples with these numbers."""
    return each_tensor(batch, lambda tensor: tensor[index.to(tensor.device)] if tensor.dim() else tensor)


def in_float64(tensor: Tensor) -> Tensor:
    """A floating tensor in float64, any other as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


def unless_refused(compute: Callable[[], T]) -> T | None:
    """None where the model's own code refuses such a batch: BatchNorm does a batch of one, and others by any error.

    Memory that runs out is no refusal, nor is a disk that is full: they are raised.
    """
    try:
        return compute()
    except (MemoryError, OSError):
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        return None


def runs(samples: int, count: int) -> list[range]:
    """So many samples in `count` runs of neighbours."""
    size = max(-(-samples // max(count, 1)), 1)
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]
