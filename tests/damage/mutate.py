"""Mutations of a run directory, one file or folder at a time."""

import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NOT_MUTATED = ("report", "scratch")
"""Folders of a run that nothing is read from."""
HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J",
    "a\u202eb\u2028c\u2029d\u200be\ufefff",
    "x/../../../PWNED",
    "../" * 10 + "etc/passwd",
    "/tmp/PWNED",
    "line\nline\r\nline\x85",
    "$\\frac{1}{$",
    "$x^{2$ %s %(a)s {0} {",
    "[red]markup[/red] [/] [link=x]",
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "${oc.env:HOME}",
    "e\u0301\u00fc\u4e2d\U0001f600",
    "A" * 20_000,
    "",
    "nan",
    "-0",
    "\0",
    "__class__",
)
LEAVES: tuple[Any, ...] = (
    *(None, True, "text", [], {}, [None], [[]], [{}], {"a": None}, {"": {}}, 0, -1, 0.5, 2**70, 10**300, -(10**30)),
    *(float("nan"), float("inf"), -float("inf"), "\ud800", *HOSTILE),
)
DEEP = 100_000


@dataclass(frozen=True)
class Mutation:
    """One change to a run directory."""

    path: str
    """Path of the file or folder, relative to the run."""
    words: str


Change = Callable[[Path, random.Random], str | None]
"""Changes a file and says how; None where it does not apply."""


def mutate(run: Path, draw: random.Random, bait: Path) -> Mutation:
    """Change one file or folder of the run; `bait` is a folder outside that links lead to."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in NOT_MUTATED)
    names = sorted({path.relative_to(run).parts[0] for path in files})
    while True:
        own = draw.choice(names)  # a folder of many files is no likelier than config.yaml
        path = draw.choice([path for path in files if path.relative_to(run).parts[0] == own])
        changes = (*_ANY, *(_OF_SUFFIX.get(path.suffix, ()) * 4))
        if draw.random() < 0.05 and path.parent != run:
            path, changes = path.parent, _OF_FOLDER
        change = draw.choice(changes)
        words = change(path, draw) if change is not _link else _link(path, draw, bait)
        if words is not None:
            return Mutation(str(path.relative_to(run)), words)


def _truncate(path: Path, draw: random.Random) -> str:
    size = path.stat().st_size
    length = draw.randrange(max(1, size))
    os.truncate(path, length)
    return f"truncated to {length} of {size} bytes"


def _empty(path: Path, draw: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def _drop(path: Path, draw: random.Random) -> str:
    _remove(path)
    return "removed"


def _noise(path: Path, draw: random.Random) -> str:
    path.write_bytes(draw.randbytes(draw.choice((1, 100, 5000))))
    return "random bytes"


def _flip(path: Path, draw: random.Random) -> str | None:
    content = bytearray(path.read_bytes())
    if not content:
        return None
    places = [draw.randrange(len(content)) for _ in range(draw.choice((1, 3, 20)))]
    for place in places:
        content[place] = draw.randrange(256)
    path.write_bytes(content)
    return f"bytes {places} changed"


def _huge(path: Path, draw: random.Random) -> str:
    os.truncate(path, 2**40)
    return "a hole of 1 TiB at its end"


def _swap(path: Path, draw: random.Random) -> str | None:
    others = sorted(other for other in path.parent.parent.glob("*/*") if other.is_file() and other != path)
    others += sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    if not others:
        return None
    other = draw.choice(others)
    content, instead = path.read_bytes(), other.read_bytes()
    path.write_bytes(instead)
    other.write_bytes(content)
    return f"swapped with {other.parent.name}/{other.name}"


def _folder(path: Path, draw: random.Random) -> str:
    _remove(path)
    path.mkdir()
    (path / "inside").write_text("x")
    return "a folder in its place"


def _fifo(path: Path, draw: random.Random) -> str:
    _remove(path)
    os.mkfifo(path)
    return "a FIFO in its place"


def _socket(path: Path, draw: random.Random) -> str | None:
    _remove(path)
    here = os.open(path.parent, os.O_RDONLY)
    before = os.open(".", os.O_RDONLY)
    try:
        os.fchdir(here)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name if len(path.name) < 100 else "s")
        if len(path.name) >= 100:
            Path("s").rename(path.name)
    finally:
        os.fchdir(before)
        os.close(here)
        os.close(before)
    return "a socket in its place"


def _device(path: Path, draw: random.Random) -> str:
    device = draw.choice(("/dev/zero", "/dev/random", "/dev/full", "/dev/null"))
    _remove(path)
    try:
        os.mknod(path, 0o600 | 0o020000, os.stat(device).st_rdev)  # noqa: PTH116
    except PermissionError:
        path.symlink_to(device)
    return f"{device} in its place"


def _link(path: Path, draw: random.Random, bait: Path | None = None) -> str:
    assert bait is not None
    target = draw.choice([bait / "file", bait / "folder", bait / "none", path.name, "/dev/zero", "/etc/passwd"])
    _remove(path)
    path.symlink_to(target)
    return f"a link to {target} in its place"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _of_table(path: Path, draw: random.Random) -> str | None:
    """Change a column."""
    table = _table(path)
    if table is None or not table.num_columns:
        return None
    name = draw.choice(table.column_names)
    place, column = table.column_names.index(name), table[name]
    how = draw.choice(("drop", "null", "text", "number", "nan", "hostile", "list", "twice", "large"))
    count = table.num_rows
    numbers = [draw.choice((float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e308, 5e-324)) for _ in range(count)]
    values = {
        "null": [None] * count,
        "text": [str(value) for value in column.to_pylist()],
        "number": [draw.choice((-1, 0, 2**62, 7)) for _ in range(count)],
        "nan": numbers if draw.random() < 0.5 else [*numbers[:1], *column.to_pylist()[1:]] if _real(column) else numbers,
        "hostile": [draw.choice(HOSTILE) for _ in range(count)],
        "list": [[value] for value in column.to_pylist()],
        "large": [10**18 + place for place in range(count)],
    }
    if how == "drop":
        changed = table.drop_columns([name])
    elif how == "twice":
        changed = table.append_column(name, column)
    else:
        changed = table.set_column(place, name, pa.array(values[how]))
    pq.write_table(changed.replace_schema_metadata(None), path)
    return f"column {name}: {how}"


def _cells(path: Path, draw: random.Random) -> str | None:
    """Change one cell to something of its type."""
    table = _table(path)
    if table is None or not table.num_rows:
        return None
    name, row = draw.choice(table.column_names), draw.randrange(table.num_rows)
    kind = table[name].type
    values: list[Any] = table[name].to_pylist()
    if pa.types.is_floating(kind):
        values[row] = draw.choice((float("nan"), float("inf"), -1.0, 0.0, 1e308))
    elif pa.types.is_integer(kind):
        values[row] = draw.choice((-1, 0, 2**31 - 1, 1))
    elif pa.types.is_boolean(kind):
        values[row] = not values[row]
    else:
        values[row] = draw.choice(HOSTILE)
        kind = pa.string()
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values, kind)), path)
    return f"column {name}, row {row}: {str(values[row])[:30]!r}"


def _rows(path: Path, draw: random.Random) -> str | None:
    """Drop, repeat, or reorder rows."""
    table = _table(path)
    if table is None or not table.num_rows:
        return None
    how = draw.choice(("none", "first", "half", "twice", "shuffled"))
    rows = list(range(table.num_rows))
    kept = {"none": [], "first": rows[:1], "half": rows[: len(rows) // 2], "twice": rows * 2}.get(how)
    if kept is None:
        kept = draw.sample(rows, len(rows))
    pq.write_table(table.take(pa.array(kept, pa.int64())), path)
    return f"rows: {how}"


def _bomb(path: Path, draw: random.Random) -> str | None:
    """Many rows in few bytes: more than are read, or as many as are."""
    table = _table(path)
    if table is None or not table.num_rows:
        return None
    count = draw.choice((2**19, 2**22 + 1))
    columns = {name: _repeated(table[name][0], count) for name in table.column_names}
    pq.write_table(pa.table(columns), path)
    return f"{count} equal rows"


def _repeated(value: pa.Scalar, count: int) -> pa.Array:
    text = value.as_py()
    if not isinstance(text, str):
        return pa.repeat(value, count)
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), count), pa.array([text]))


def _table(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None


def _real(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_floating(column.type))


def _json(path: Path, draw: random.Random) -> str | None:
    """Change a value, a key, or the whole."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return None
    if draw.random() < 0.1:
        bomb = draw.choice(("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "9" * 5000, "1e999", "nul", '"a'))
        path.write_text(bomb)
        return f"{bomb[:10]}..."
    spots, words = list(_spots(content, ())), []
    if not spots:
        return None
    for _ in range(draw.choice((1, 1, 1, 5, 20))):
        spot, leaf = draw.choice(spots), draw.choice(LEAVES)
        if _put(content, spot, leaf):
            words.append(f"{spot} = {str(leaf)[:30]!r}")
    path.write_text(json.dumps(content))
    return "; ".join(words) or None


def _spots(value: Any, here: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from _spots(inner, (*here, key))


def _put(content: Any, spot: tuple[Any, ...], leaf: Any) -> bool:
    """False where an earlier change has taken the place away."""
    try:
        for key in spot[:-1]:
            content = content[key]
        content[spot[-1]] = leaf
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _yaml(path: Path, draw: random.Random) -> str:
    """Change a line, or the whole."""
    bombs = {
        "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in _LETTERS),
        "deep": "a: " + "[" * 5000 + "]" * 5000,
        "launches": path.read_text().replace("launches: 1\n", f"launches: {draw.choice((10_000, 10**9, 10**18))}\n"),
        "list": "[1, 2]",
        "text": "text",
        "tag": "name: !!python/object/apply:os.system ['touch /tmp/PWNED']\n",
        "sweep": f"{path.read_text()}reduction:\n  mean: {json.dumps(_SWEPT)}\n",
    }
    if draw.random() < 0.4:
        how = draw.choice(sorted(bombs))
        path.write_text(bombs[how])
        return how
    lines = path.read_text().splitlines()
    place = draw.randrange(len(lines))
    leaf = json.dumps(draw.choice(LEAVES))
    key = lines[place].partition(":")[0]
    lines[place] = draw.choice((f"{key}: {leaf}", f"{key}: ", f"{key}", f"{lines[place]}x", f"  {lines[place]}", f"- {leaf}"))
    path.write_text("\n".join(lines) + "\n", errors="replace")
    return f"line {place + 1}: {lines[place][:60]!r}"


_SWEPT = {"_sweepable_": list("abcdefghi"), **{key: list(range(20)) for key in "abcdefghi"}}
_LETTERS = list(zip("abcdefgh", "bcdefghi", strict=True))
_ANY: tuple[Any, ...] = (_truncate, _empty, _drop, _noise, _flip, _huge, _swap, _folder, _fifo, _socket, _device, _link)
_OF_FOLDER: tuple[Any, ...] = (_drop, _fifo, _link)
_OF_SUFFIX: dict[str, tuple[Any, ...]] = {
    ".parquet": (_of_table, _of_table, _cells, _cells, _rows, _bomb, _flip),
    ".json": (_json,) * 5,
    ".yaml": (_yaml,) * 5,
}
