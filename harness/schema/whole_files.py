"""Files that are never seen half written, and what is read of them."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A hidden name to write to; it becomes `path`, on the disk, when the block ends without an error."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole: under another name, to the disk, then renamed."""
    with writing(path) as part, part.open("wb") as file:
        file.write(content)


def read_json(path: Path, kind: type = dict) -> Any:
    """The file's content; None when it is missing, not whole, or no `kind`."""
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, kind) else None
