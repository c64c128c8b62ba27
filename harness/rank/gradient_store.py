"""Gradients that wait to be compared, in files: memory holds the gradient at hand only."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from harness.schema.whole_files import make_folder, open_new, remove
from harness.tensors.bits import bits

_ALIGNMENT = 8
"""A tensor can be viewed in a file only where its offset is a multiple of its element's size."""


class GradientStore:
    """A rank's gradients by name. A file holds the bits of one parameter after the other; nothing is pickled."""

    def __init__(self, folder: Path, below: Path) -> None:
        """below: the parent under which `folder` is created; no link below it is followed."""
        self._folder, self._below = folder, below
        self._layouts: dict[str, list[tuple[str, torch.Size, torch.dtype]]] = {}

    def save(self, name: str, gradient: Iterable[tuple[str, Tensor]]) -> None:
        """Write the (parameter name, tensor) pairs, one at a time."""
        layout = []
        with self._new(name) as file:
            for parameter, tensor in gradient:
                layout.append((parameter, tensor.shape, tensor.dtype))
                file.write(bits(tensor).numpy().data)
                file.write(bytes(-file.tell() % _ALIGNMENT))
        self._layouts[name] = layout

    def save_flat(self, name: str, parts: Iterable[Tensor]) -> None:
        """Write tensors of one dtype as one vector, one at a time."""
        elements, dtype = 0, torch.float32
        with self._new(name) as file:
            for part in parts:
                elements, dtype = elements + part.numel(), part.dtype
                file.write(bits(part).numpy().data)
        self._layouts[name] = [("", torch.Size([elements]), dtype)]

    def blank(self, name: str, elements: int) -> Tensor:
        """A float64 vector to be written to, held by its file."""
        self._layouts[name] = [("", torch.Size([elements]), torch.float64)]
        self._new(name).close()
        return torch.from_file(str(self._path(name)), shared=True, size=elements, dtype=torch.float64)

    def flat(self, name: str) -> Tensor:
        """A gradient as one vector [elements], parameter after parameter, mapped. It must be float64, or saved so."""
        layout = self._layouts[name]
        dtypes = {dtype for _, _, dtype in layout}
        assert len(layout) == 1 or dtypes == {torch.float64}, "between other elements lie gaps"
        return self._mapped(name).view(dtypes.pop())[: sum(shape.numel() for _, shape, _ in layout)]

    def _mapped(self, name: str) -> Tensor:
        path = self._path(name)
        size = path.stat().st_size
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)

    def load(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, tensor) pairs in the order of `save`, mapped from the file: read when they are looked at."""
        offset, whole = 0, self._mapped(name)
        for parameter, shape, dtype in self._layouts[name]:
            end = offset + shape.numel() * dtype.itemsize
            yield parameter, whole[offset:end].view(dtype).view(shape)
            offset = end + -end % _ALIGNMENT

    def drop(self, names: Iterable[str]) -> None:
        """Remove gradients that nothing is compared with any more."""
        for name in names:
            if self._layouts.pop(name, None) is not None:
                remove(self._path(name), self._below)

    def _new(self, name: str) -> IO[bytes]:
        make_folder(self._folder, self._below)
        return open_new(self._path(name), self._below)

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode()).hexdigest()


class Flats:
    """Vectors by name, in a GradientStore; read when they are looked at."""

    def __init__(self, store: GradientStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._held: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def save(self, name: str, parts: Iterable[Tensor]) -> None:
        """A vector, part after part. Whatever had the name is replaced."""
        self._store.save_flat(self._prefix + name, parts)
        self._held.add(name)

    def load(self, name: str) -> Tensor:
        """[elements], mapped from its file."""
        return self._store.flat(self._prefix + name)

    def once(self, name: str, compute: Callable[[], Iterable[Tensor]]) -> Tensor:
        """What has the name; computed if nothing has."""
        if name not in self._held:
            self.save(name, compute())
        return self.load(name)

    def blank(self, name: str, elements: int) -> Tensor:
        """See GradientStore."""
        self._held.add(name)
        return self._store.blank(self._prefix + name, elements)

    def clear(self) -> None:
        """Remove them all."""
        self._store.drop(self._prefix + name for name in self._held)
        self._held.clear()
