"""Definitions by dotted name, read from source files: nothing is imported, and no code of the user's is executed."""

import ast
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TypeAlias

_BLOCKS = (ast.If, ast.Try, ast.With, ast.For, ast.While)
OWN = ("harness", "launch")
"""Packages of reducebench, which ranks import from beside this one, whatever the search path contains."""
_DEPTH = 20
"""Largest number of imports that are followed to a definition."""
Statement: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Other(Enum):
    """Results of a search that found no definition."""

    MISSING = "missing"
    MODULE = "module"
    UNKNOWN = "unknown"
    """Bound by a statement whose value only execution would show."""


@dataclass(frozen=True)
class Imported:
    """A name that `from module import name` binds; without `name`, the module itself."""

    module: str
    name: str = ""


@dataclass(frozen=True)
class Definition:
    """A class or a function, and the module that defines it."""

    module: "Module"
    statement: Statement


@dataclass(frozen=True)
class Module:
    """A module's bindings, from its source."""

    name: str
    package: str
    bindings: dict[str, list[Statement | Imported | ast.expr | None]] = field(default_factory=dict)
    """Map each name to its binding: an expression where it is assigned to that name alone, None for any other statement."""
    stars: list[str] = field(default_factory=list)
    """Modules from which it imports `*`."""


class Sources:
    """Modules as the ranks will find them: in `search_path` first, then on Python's own path."""

    def __init__(self, search_path: list[str]) -> None:
        self._search_path = search_path
        self._specs: dict[str, ModuleSpec | None] = {}
        self._modules: dict[str, Module | None] = {}

    def find(self, target: str) -> Definition | Other:
        """Definition of a dotted name; raises ValueError that names the missing part."""
        names = target.split(".")
        if len(names) < 2 or not all(name.isidentifier() for name in names):
            raise ValueError("expected a dotted name, as in package.module.Class")
        if self.spec(names[0]) is None:
            raise ValueError(f"there is no module {names[0]}")
        depth = next((depth for depth in range(2, len(names) + 1) if self.spec(".".join(names[:depth])) is None), None)
        if depth is None:
            return Other.MODULE
        module, name = ".".join(names[: depth - 1]), names[depth - 1]
        found = self.resolve(module, name)
        if found is Other.MISSING:
            raise ValueError(f"module {module} has no {name}")
        return found if depth == len(names) else Other.UNKNOWN

    def resolve(self, module: str, name: str, depth: int = _DEPTH) -> Definition | Other:
        """Definition that a module has under a name, through any `from ... import`. Raises ValueError for unreadable source."""
        read = self.module(module)
        if read is None:
            spec = self.spec(module)
            return Other.UNKNOWN if spec and spec.origin else Other.MISSING
        bound = read.bindings.get(name, [])
        if len(bound) == 1 and depth:
            return self._bound(read, bound[0], depth)
        return Other.UNKNOWN if bound or not depth else self._from_elsewhere(read, name, depth)

    def _bound(self, module: Module, binding: Statement | Imported | ast.expr | None, depth: int) -> Definition | Other:
        if isinstance(binding, ast.Name):
            return self.resolve(module.name, binding.id, depth - 1)
        if binding is None or isinstance(binding, ast.expr):
            return Other.UNKNOWN
        if not isinstance(binding, Imported):
            return Definition(module, binding)
        if not binding.name:
            return Other.MODULE
        try:
            found = self.resolve(binding.module, binding.name, depth - 1)
        except ValueError:
            return Other.UNKNOWN
        return Other.UNKNOWN if found is Other.MISSING else found

    def _from_elsewhere(self, module: Module, name: str, depth: int) -> Definition | Other:
        for star in module.stars:
            found = self._bound(module, Imported(star, name), depth)
            if found is not Other.UNKNOWN:
                return found
        if module.stars or "__getattr__" in module.bindings:
            return Other.UNKNOWN
        return Other.MODULE if self.spec(f"{module.name}.{name}") else Other.MISSING

    def spec(self, module: str) -> ModuleSpec | None:
        """Find the spec of a dotted module; nothing is executed."""
        if module not in self._specs:
            parent, _, _ = module.rpartition(".")
            self._specs[module] = self._find_inside(parent, module) if parent else self._find_top(module)
        return self._specs[module]

    def _find_inside(self, parent: str, module: str) -> ModuleSpec | None:
        outer = self.spec(parent)
        return PathFinder.find_spec(module, outer.submodule_search_locations or []) if outer else None

    def _find_top(self, name: str) -> ModuleSpec | None:
        """Find a top-level module as the ranks will; reducebench is always the running one."""
        if name in OWN:
            return sys.modules[name].__spec__
        found = PathFinder.find_spec(name, self._search_path)
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        found = found or next((spec for find in finders if find and (spec := find(name, None))), None)
        frozen = found is not None and found.origin == "frozen"  # part of the standard library, whose source lies in a file too
        return (PathFinder.find_spec(name) or found) if frozen else found

    def module(self, name: str) -> Module | None:
        """Bindings of a module; None where it has no source. Raises ValueError where the source cannot be read."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        spec = self.spec(name)
        if spec is None or not spec.origin or Path(spec.origin).suffix != ".py":
            return None
        try:
            body = _parsed(Path(spec.origin).read_bytes()).body
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"cannot read module {name}: {error}") from error
        module = Module(name, name if spec.submodule_search_locations is not None else name.rpartition(".")[0])
        for statement in _statements(body):
            _bind(module, statement)
        return module


@functools.lru_cache(maxsize=512)
def _parsed(source: bytes) -> ast.Module:
    """Syntax tree of a module: parsing takes 1 ms, and a process may compose several times."""
    return ast.parse(source)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module, in all branches."""
    for statement in body:
        yield statement
        if isinstance(statement, _BLOCKS):
            children = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
            handlers = [child for handler in getattr(statement, "handlers", []) for child in handler.body]
            yield from _statements(children + handlers)


def _bind(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        module.bindings.setdefault(statement.name, []).append(statement)
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            bound = Imported(alias.name if alias.asname else alias.name.split(".")[0])
            module.bindings.setdefault(alias.asname or bound.module, []).append(bound)
    elif isinstance(statement, ast.ImportFrom):
        _bind_from(module, statement)
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        _bind_assigned(module, statement)


def _bind_assigned(module: Module, statement: ast.Assign | ast.AnnAssign | ast.AugAssign) -> None:
    alone = isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            module.bindings.setdefault(node.id, []).append(statement.value if alone else None)


def _bind_from(module: Module, statement: ast.ImportFrom) -> None:
    package = module.package.split(".")
    outer = package[: len(package) - statement.level + 1] if statement.level else []
    source = ".".join([*outer, *([statement.module] if statement.module else [])])
    for alias in statement.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.bindings.setdefault(alias.asname or alias.name, []).append(Imported(source, alias.name))
