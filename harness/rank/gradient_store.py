"""Gradients that wait to be compared, in files: memory holds the gradient at hand only."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

_ALIGNMENT = 8
"""A tensor can be viewed in a file only where its offset is a multiple of its element's size."""


class GradientStore:
    """A rank's gradients by name. A file holds the bits of one parameter after the other; nothing is pickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layouts: dict[str, list[tuple[str, torch.Size, torch.dtype]]] = {}

    def save(self, name: str, gradient: Iterable[tuple[str, Tensor]]) -> None:
        """Write the (parameter name, tensor) pairs, one at a time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        layout = []
        with self._path(name).open("wb") as file:
            for parameter, tensor in gradient:
                layout.append((parameter, tensor.shape, tensor.dtype))
                file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
                file.write(bytes(-file.tell() % _ALIGNMENT))
        self._layouts[name] = layout

    def load(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, tensor) pairs in the order of `save`, mapped from the file: read when they are looked at."""
        offset, path = 0, self._path(name)
        size = path.stat().st_size
        whole = (
            torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            if size
            else torch.empty(0, dtype=torch.uint8)
        )
        for parameter, shape, dtype in self._layouts[name]:
            end = offset + shape.numel() * dtype.itemsize
            yield parameter, whole[offset:end].view(dtype).view(shape)
            offset = end + -end % _ALIGNMENT

    def drop(self, names: Iterable[str]) -> None:
        """Remove gradients that nothing is compared with any more."""
        for name in names:
            if self._layouts.pop(name, None) is not None:
                self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()
