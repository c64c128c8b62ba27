"""Copies of the tree with one planted defect each, and the environment in which every process uses such a copy."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants.planted import Mutant
from tests.running import ROOT

PACKAGES = ("harness", "launch")
_WHERE = "import harness.conf, launch; print(*harness.__path__, *launch.__path__, *harness.conf.__path__)"


class MatchError(ValueError):
    """A mutant's old expression does not stand exactly once in the sources."""


@dataclass(frozen=True)
class Function:
    """One definition; lines are counted from 1, and both ends are included."""

    path: Path
    """Relative to the root of the tree."""
    begin: int
    body: int
    """Line of the first statement: the lines before it run on import."""
    end: int


@dataclass(frozen=True)
class Match:
    """The function that a mutant changes, and its file with the change."""

    function: Function
    source: str


def find(mutant: Mutant, root: Path = ROOT) -> Match:
    """Return the only place that the mutant changes. Raises MatchError when there are none or several."""
    candidates = _functions(root).get(mutant.function, ())
    lines = {function: (root / function.path).read_text().splitlines(keepends=True) for function in candidates}
    counts = {function: _text(lines[function], function).count(mutant.old) for function in candidates}
    if sum(counts.values()) != 1:
        seen = ", ".join(f"{count} in {function.path}:{function.begin}" for function, count in counts.items())
        raise MatchError(
            f"{mutant.name}: `{mutant.old}` must stand once in {mutant.function}; found: {seen or 'no such function'}"
        )
    function = max(counts, key=lambda candidate: counts[candidate])
    before, after = lines[function][: function.begin - 1], lines[function][function.end :]
    return Match(function, "".join([*before, _text(lines[function], function).replace(mutant.old, mutant.new), *after]))


def _text(lines: list[str], function: Function) -> str:
    return "".join(lines[function.begin - 1 : function.end])


@cache
def _functions(root: Path) -> Mapping[str, list[Function]]:
    """Index the functions of a tree by qualified name, without the module."""
    found = defaultdict[str, list[Function]](list)
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        for name, node in _definitions(ast.parse(path.read_text())):
            assert node.end_lineno is not None
            found[name].append(Function(path.relative_to(root), node.lineno, node.body[0].lineno, node.end_lineno))
    return found


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        name = f"{prefix}{child.name}" if named else prefix.removesuffix(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, child
        yield from _definitions(child, f"{name}." if name else "")


def copy_tree(target: Path) -> None:
    """Copy the files that git knows or would add, and commit them, because the harness asks git for its commit.

    The finder of the editable install comes too, changed to look in the copy: harness.conf is found by no other way.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # git also lists deleted files
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    for finder in Path(sysconfig.get_path("purelib")).glob("__editable__*_finder.py"):
        (target / finder.name).write_text(finder.read_text().replace(f"{ROOT}/", f"{target}/"))
    _git(target, "init", "--quiet")
    _git(target, "add", "--all")
    _git(target, "-c", "user.name=mutants", "-c", "user.email=mutants@localhost", "commit", "--quiet", "--message=copy")


def _git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "commit.gpgsign=false", *arguments], cwd=folder, check=True, capture_output=True)


def environment(tree: Path) -> dict[str, str]:
    """Return an environment in which every process imports our packages from `tree`; check this with one process.

    The virtual environment holds an editable install of the main tree. PYTHONPATH precedes it.
    """
    variables = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, "-c", _WHERE], cwd="/", env=variables, capture_output=True, text=True, check=True)
    expected = [str(tree / folder) for folder in (*PACKAGES, "conf")]
    assert done.stdout.split() == expected, f"imported from {done.stdout.split()} instead of {expected}"
    return variables
