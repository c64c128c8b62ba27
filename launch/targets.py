"""Whether a `_target_` can be imported, found out without executing any of the user's code."""

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig
from harness.schema.refusal import RefusedError

_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)


def check_targets(config: BenchmarkConfig, search_path: list[str]) -> None:
    """Raises RefusedError for the first `_target_` that no module defines; `search_path` comes before Python's own."""
    for axis in (*AXES, PROBE):
        for option, node in getattr(config, axis).items():
            if not isinstance(node, dict) or "_target_" not in node:
                raise RefusedError(f"{axis}.{option}: has no _target_, the class that makes it")
            for key, target in _targets(f"{axis}.{option}", node):
                missing = find_missing(str(target), search_path)
                if missing:
                    raise RefusedError(f"{key}._target_={target}: {missing}")


def find_missing(target: str, search_path: list[str]) -> str | None:
    """What of a dotted name cannot be found; None when nothing is known to be missing."""
    names = target.split(".")
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        return "expected a dotted name, as in package.module.Class"
    spec = _find_top(names[0], search_path)
    if spec is None:
        return f"there is no module {names[0]}"
    for depth, name in enumerate(names[1:], 1):
        inside = PathFinder.find_spec(".".join(names[: depth + 1]), spec.submodule_search_locations or [])
        if inside is None:
            return _missing_in(spec, ".".join(names[:depth]), name)
        spec = inside
    return None


def _find_top(name: str, search_path: list[str]) -> ModuleSpec | None:
    """A top-level module, found as the ranks will; finding one, other than finding what is inside it, executes nothing."""
    found = PathFinder.find_spec(name, search_path)
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return found or next((spec for find in finders if find and (spec := find(name, None))), None)


def _missing_in(spec: ModuleSpec, module: str, name: str) -> str | None:
    if not spec.origin or Path(spec.origin).suffix != ".py":
        return None if spec.origin else f"module {module} has no {name}"
    try:
        defined = set(_defined(ast.parse(Path(spec.origin).read_bytes()).body))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        return f"cannot read module {module}: {error}"
    known = {name, "*", "__getattr__"} & defined
    return None if known else f"module {module} has no {name}"


def _targets(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, child in node.items():
            yield from _targets(f"{key}.{name}", child)


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that the statements bind, whatever branch is taken."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
        elif isinstance(statement, _BLOCKS):
            children = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
            handlers = [child for handler in getattr(statement, "handlers", []) for child in handler.body]
            yield from _defined(children + handlers)
