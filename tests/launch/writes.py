"""Changes to the file system, and processes, that this process makes: seen by Python's audit events."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod", "os.chown"}
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"}
_seen: list[list[str]] = []
"""Innermost last; empty while nobody watches. A hook cannot be taken back."""


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _seen:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING and not isinstance(arguments[0], int):
        _note(arguments[0])
    elif event in _CHANGES:
        for path in arguments[:2] if event in ("os.rename", "os.link") else [arguments[1 if event == "os.symlink" else 0]]:
            _note(path)
    elif event in _STARTS:
        _seen[-1].append(f"{event} {arguments}")


def _note(path: Any) -> None:
    if isinstance(path, str | bytes):
        text = os.fsdecode(path)
        if text.startswith("/") and "__pycache__" not in text and not text.startswith("/dev/"):
            _seen[-1].append(os.path.realpath(text))


@contextmanager
def changes_outside(folder: Path) -> Iterator[list[str]]:
    """Paths outside of `folder` that are opened for writing, made or removed meanwhile, and processes that are started.

    Relative paths are left out: an event does not tell relative to which folder.
    """
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)
        _hook.installed = True  # type: ignore[attr-defined]
    seen = list[str]()
    _seen.append(seen)
    try:
        yield seen
    finally:
        _seen.pop()
        seen[:] = [text for text in seen if not f"{text}/".startswith(f"{folder.resolve()}/")]
