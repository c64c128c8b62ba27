"""Writing files so that no reader sees a partial file, and so that no link in a run redirects it.

`below` is the folder that a user named: it, and the path to it, may be a link. Everything below it comes from a run, which may
belong to another user: each folder there is opened relative to its parent, and may not be a link.
"""

import contextlib
import errno
import fnmatch
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from harness.schema.refusal import RefusedError

PART = ".part"
"""Ending of hidden files that are being written; a process that was killed leaves them behind."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OWN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""O_NONBLOCK: opening a FIFO does not wait, and the FIFO is then refused. It has no effect on regular files."""


@contextlib.contextmanager
def open_folder(folder: Path, below: Path, *, make: bool = False) -> Iterator[int]:
    """Descriptor of a folder below `below`, or of `below` itself; make: create what is missing of it.

    Raises RefusedError where a folder on the way is a link, or no folder.
    """
    descriptor, way = os.open(below, _FOLDER), Path(below)
    try:
        for name in folder.relative_to(below).parts:
            way /= name
            inner = _open_inner(name, descriptor, way, make=make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _open_inner(name: str, outer: int, way: Path, *, make: bool) -> int:
    if name == os.pardir:
        raise RefusedError(f"{way}: leads out of the folder; expected the name of a folder")
    if make:
        with contextlib.suppress(FileExistsError), _named(way):
            os.mkdir(name, dir_fd=outer)
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=outer)
    except OSError as error:
        check_no_link(way)
        error.filename = str(way)
        raise


_TRY = "try to remove it, or to replace it with a copy of its target"


def check_no_link(folder: Path) -> None:
    """Raise RefusedError where a folder of a run is a link."""
    if folder.is_symlink():
        raise RefusedError(f"{folder}: is a symbolic link; expected a folder, as nothing is written through links; {_TRY}")


def make_folder(folder: Path, below: Path) -> None:
    """Create a folder, and those that lead to it. Raises RefusedError where one of them is a link."""
    with open_folder(folder, below, make=True):
        pass


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the path to errors: the system reports the name in its folder only."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def writing(path: Path, below: Path) -> Iterator[IO[bytes]]:
    """A hidden file to write to; it becomes `path`, on the disk, when the block ends without an error.

    Its name is random, and it did not exist before. A link that has the name `path` is replaced, not followed.
    """
    with open_folder(path.parent, below) as folder:
        part = f".{secrets.token_hex(8)}{PART}"
        with _named(path):
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OWN, 0o666, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            with _named(path):
                os.replace(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=folder)
            raise


def write_whole(path: Path, content: bytes, below: Path) -> None:
    """Write a file whole: under another name, to the disk, then renamed."""
    with writing(path, below) as file:
        file.write(content)


def open_in_place(path: Path, below: Path, flags: int) -> int:
    """Descriptor of a file that is changed where it is: os.O_APPEND of a log. Created where it is missing and O_CREAT asks so.

    Raises RefusedError for a link, for a file that is not regular, and for a file that has a second name.
    """
    descriptor = _open_regular(path, below, flags)
    names = os.fstat(descriptor).st_nlink
    if names > 1:
        os.close(descriptor)
        raise RefusedError(f"{path}: has {names} names (hard links); expected one, as the file is changed in place; {_TRY}")
    return descriptor


def _open_regular(path: Path, below: Path, flags: int) -> int:
    with open_folder(path.parent, below) as folder:
        try:
            descriptor = os.open(path.name, flags | _OWN, 0o666, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # a link, a folder, a FIFO or socket
                raise RefusedError(_ODD.format(path)) from error
            error.filename = str(path)
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedError(_ODD.format(path))
    return descriptor


_ODD = "{}: is a symbolic link, or no regular file; expected a file, as nothing is written through links; " + _TRY


def check_in_place(path: Path, below: Path) -> None:
    """Raise RefusedError for a file that open_in_place would refuse; a missing file is accepted.

    It need not be readable: O_PATH opens nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        os.close(open_in_place(path, below, os.O_PATH))


def open_new(path: Path, below: Path) -> IO[bytes]:
    """Create a file for reading and writing; it replaces an existing one of that name."""
    with open_folder(path.parent, below) as folder:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        descriptor = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OWN, 0o666, dir_fd=folder)
    return os.fdopen(descriptor, "w+b")


def remove(path: Path, below: Path) -> None:
    """Remove a file or a link, if it exists."""
    with contextlib.suppress(FileNotFoundError), open_folder(path.parent, below) as folder:
        os.unlink(path.name, dir_fd=folder)


def remove_all(folder: Path, below: Path, pattern: str) -> None:
    """Remove the files of a folder whose names match a shell pattern."""
    with open_folder(folder, below) as opened:
        for name in fnmatch.filter((entry.name for entry in os.scandir(opened)), pattern):
            os.unlink(name, dir_fd=opened)


def rename(path: Path, name: str, below: Path) -> None:
    """Give a file another name in its folder."""
    with open_folder(path.parent, below) as folder:
        os.replace(path.name, name, src_dir_fd=folder, dst_dir_fd=folder)
