"""Changes that code makes to the file system, from Python's audit events, from strace, and from snapshots."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FOLDER_OF = {
    **dict.fromkeys(("os.remove", "os.rmdir"), ((0, 1),)),
    **dict.fromkeys(("os.mkdir", "os.chmod"), ((0, 2),)),
    "os.utime": ((0, 3),),
    "os.chown": ((0, 3),),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
    "os.rename": ((0, 2), (1, 3)),
    "os.truncate": ((0, None),),
}
"""Audit event to places of (a path that it changes, the descriptor of the folder that the path is relative to)."""
_SEEN: list[tuple[str, str]] | None = None
_HOOKED: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _SEEN is None or (event != "open" and event not in _FOLDER_OF):
        return
    if event != "open":
        for path, folder in _FOLDER_OF[event]:
            _SEEN.append((event, _placed(arguments[path], -1 if folder is None else arguments[folder])))
        return
    path, _, flags = arguments
    if isinstance(path, str | bytes) and flags & _WRITING:
        name = os.fsdecode(path)
        if Path(name).is_absolute() or not flags & os.O_NOFOLLOW:
            _SEEN.append((event, _placed(name, -1)))
        elif os.sep in name or not flags & os.O_EXCL:
            _SEEN.append((event, f"{name} relative to a folder, not exclusively"))


def _placed(path: Any, folder: int) -> str:
    """With every link on the way followed, but not the last part."""
    base = Path(f"/proc/self/fd/{folder}").readlink() if folder is not None and folder >= 0 else Path.cwd()
    whole = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else base / os.fsdecode(path)
    return str(whole.parent.resolve() / whole.name)


@contextmanager
def changes() -> Iterator[list[tuple[str, str]]]:
    """(audit event, path) of what this process writes, makes, renames and removes. A file made in a folder's descriptor,
    exclusively and without following links, counts when it is given its name."""
    global _SEEN
    if not _HOOKED:
        sys.addaudithook(_hook)
        _HOOKED.append(True)
    _SEEN = seen = []
    try:
        yield seen
    finally:
        _SEEN = None


def outside(seen: Iterable[tuple[str, str]], *allowed: Path) -> list[tuple[str, str]]:
    """Those that are not below a folder of `allowed`; /dev/null, and what Python compiles of modules, are no matter."""
    roots = [f"{path.resolve()}{os.sep}" for path in allowed]
    return [
        (event, path)
        for event, path in seen
        if f"{path}{os.sep}" not in roots and not path.startswith(tuple(roots)) and not _of_python(path)
    ]


def _of_python(path: str) -> bool:
    return path == os.devnull or "__pycache__" in path


def look(folder: Path, *but: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in a folder, with what it holds, except below `but`."""
    found = {}
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(top, name) not in but]
        for path in [Path(top, name) for name in (*folders, *files)]:
            status = path.lstat()
            held = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else ""
            found[str(path)] = (held, status.st_ino, status.st_mtime_ns, status.st_mode, status.st_nlink)
    return found


STRACE = ("strace", "-f", "-y", "-qq", "-s", "4096", "-e", "trace=%file,ftruncate", "-e", "signal=none")
_CALL = re.compile(r"(?:\[?\w+ *\d*\]? )?(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<(?P<path>[^>]*)>)?")
_OPENED = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
_CHANGING = re.compile(r"(mkdir|rename|unlink|rmdir|symlink|link|truncate|chmod|fchmod|chown|fchown|utime|mknod)\w*")
_NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<(?P<folder>[^>]*)>, )?"(?P<name>(?:[^"\\]|\\.)*)"')


def traced(lines: Sequence[str]) -> list[tuple[str, str]]:
    """(system call, path) of what processes under STRACE wrote, made, renamed and removed."""
    seen = []
    for line in lines:
        call = _CALL.search(line)
        if call is None:
            continue
        if call["name"].startswith("open") and _OPENED.search(call["arguments"]):
            seen.append((call["name"], call["path"] or line))
        elif _CHANGING.fullmatch(call["name"]):
            for named in _NAMED.finditer(call["arguments"]):
                seen.append((call["name"], str(Path(named["folder"] or "/", named["name"]))))
    return seen
