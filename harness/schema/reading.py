"""Reading the files of a run, which may be damaged or belong to another user. Only this module opens them."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 2**26
"""Largest size of a JSON, YAML or text file, in bytes. Parquet files and logs are read in parts and have no limit here."""
_MOST_WORDS = 200
"""Largest number of characters of an error."""
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class NotWholeError(Exception):
    """Error for a file of a run whose content is not as declared; the message names the problem."""


def open_file(path: Path, folders: int = 0) -> BinaryIO:
    """Open a regular file. Raise OSError for a link, FIFO, socket, device or directory, none of which is opened.

    The last `folders` folders of the path are the run's own, and must not be links either; the run itself may be reached
    by a link, as `latest` is.
    """
    names = path.parts[-folders - 1 :]
    descriptor = os.open(path.parents[folders], _FOLDER)
    try:
        for name in names[:-1]:
            inner = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        _check(os.stat(names[-1], dir_fd=descriptor, follow_symlinks=False), path)
        opened = os.open(names[-1], _FILE, dir_fd=descriptor)
    finally:
        os.close(descriptor)
    file = os.fdopen(opened, "rb")
    try:
        _check(os.fstat(opened), path)  # it may have been replaced since
    except OSError:
        file.close()
        raise
    return file


def _check(found: os.stat_result, path: Path) -> None:
    """Raise OSError unless it is a regular file."""
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def is_there(path: Path) -> bool:
    """True if the name exists, even as a link whose target does not exist."""
    return os.path.lexists(path)


def is_regular(path: Path, folders: int = 0) -> bool:
    """True if open_file opens it."""
    try:
        open_file(path, folders).close()
    except OSError:
        return False
    return True


def read_bytes(path: Path, folders: int = 0, most: int = MOST_BYTES) -> bytes:
    """Content of a file of at most `most` bytes. Raise OSError."""
    with open_file(path, folders) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most} bytes", str(path))
    return content


def read_text(path: Path, folders: int = 0) -> str:
    """Content of a text file; what is not UTF-8 is replaced. Raise OSError."""
    return read_bytes(path, folders).decode(errors="replace")


def load_json(path: Path, folders: int = 0) -> Any:
    """Content of a JSON file. Raise FileNotFoundError where there is none, NotWholeError where it cannot be read."""
    try:
        return json.loads(read_bytes(path, folders))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise NotWholeError(reason(error)) from error


def read_json(path: Path, kind: type = dict, folders: int = 0) -> Any:
    """Content of a JSON file; None where it is missing, cannot be read, or is not a `kind`."""
    try:
        loaded = load_json(path, folders)
    except (OSError, NotWholeError):
        return None
    return loaded if isinstance(loaded, kind) else None


def reason(error: Exception) -> str:
    """Return an error in one line, without the path, which the caller shows."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split())[:_MOST_WORDS] or type(error).__name__
