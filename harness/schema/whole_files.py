"""Files that are never seen half written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
