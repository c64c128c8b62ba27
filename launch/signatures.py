"""Signatures of the classes that a configuration names, read from their source files."""

import ast
import builtins
import collections.abc
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.schema import parameters
from harness.schema.parameters import Parameter, Signature, with_default
from launch.source import Definition, Imported, Module, Other, Sources

_PLAIN = {"int", "float", "str", "bool", "list", "tuple", "dict"}
_VOCABULARY = {"typing": typing, "collections.abc": collections.abc, "harness.schema.parameters": parameters}
"""Modules whose names are understood in an annotation; a class from any other module accepts any value here."""


class Lineage:
    """A class and those that it inherits from, in the order in which methods are looked up."""

    def __init__(self, sources: Sources, definition: Definition) -> None:
        self.whole = True
        """True if every base was found."""
        found = list(self._ancestors(sources, definition, 0))
        self.classes = [one for place, one in enumerate(found) if one not in found[place + 1 :]]

    def _ancestors(self, sources: Sources, definition: Definition, depth: int) -> Iterator[Definition]:
        yield definition
        assert isinstance(definition.statement, ast.ClassDef)
        self.whole &= depth < _DEEPEST
        for base in definition.statement.bases if depth < _DEEPEST else []:
            found = _named(sources, definition.module, base)
            if isinstance(found, Definition) and isinstance(found.statement, ast.ClassDef):
                yield from self._ancestors(sources, found, depth + 1)
            else:
                self.whole &= isinstance(base, ast.Name) and base.id == "object"

    def names(self) -> set[str]:
        """Dotted names of all classes."""
        return {f"{one.module.name}.{one.statement.name}" for one in self.classes}

    def method(self, name: str) -> tuple[Definition, ast.FunctionDef] | None:
        """The first class that defines a method, and the method."""
        for one in self.classes:
            for statement in one.statement.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == name:
                    return one, statement
        return None

    def abstract(self) -> list[str]:
        """Names of abstract methods that no class implements."""
        first: dict[str, bool] = {}
        for one in self.classes:
            for name, abstract in _attributes(one.statement.body):
                first.setdefault(name, abstract)
        return [name for name, abstract in first.items() if abstract]


_DEEPEST = 20


def _attributes(body: list[ast.stmt]) -> Iterator[tuple[str, bool]]:
    """Names that a class binds, each with True for an abstract method."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name, any("abstract" in ast.unparse(decorator) for decorator in statement.decorator_list)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target] * bool(statement.value)
            yield from ((node.id, False) for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _named(sources: Sources, module: Module, node: ast.expr) -> Definition | Other:
    """Definition that an expression in a module names."""
    if isinstance(node, ast.Subscript):
        return _named(sources, module, node.value)
    if isinstance(node, ast.Name):
        return sources.resolve(module.name, node.id)
    if isinstance(node, ast.Attribute):
        try:
            return sources.find(_dotted(module, node))
        except ValueError:
            return Other.UNKNOWN
    return Other.UNKNOWN


def _dotted(module: Module, node: ast.Attribute) -> str:
    """Dotted name of an attribute of an imported module, as `nn.Linear` of `from torch import nn`."""
    first, _, rest = ast.unparse(node).partition(".")
    bound = module.bindings.get(first, [])
    if len(bound) == 1 and isinstance(bound[0], Imported):
        source = f"{bound[0].module}.{bound[0].name}" if bound[0].name else bound[0].module
        return f"{source}.{rest}"
    return ""


def read_signature(sources: Sources, definition: Definition) -> Signature | None:
    """Signature of a class or a function; None if the source alone does not determine it."""
    statement = definition.statement
    if not isinstance(statement, ast.ClassDef):
        plain = isinstance(statement, ast.FunctionDef) and not statement.decorator_list
        return _signature(sources, definition.module, statement, bound=False) if plain else None
    lineage = Lineage(sources, definition)
    made = any(_makes_init(one) for one in lineage.classes)
    if not lineage.whole or made or lineage.method("__new__"):
        return None
    found = lineage.method("__init__")
    if found is None:
        return Signature({})
    owner, method = found
    return None if method.decorator_list else _signature(sources, owner.module, method, bound=True)


def _makes_init(definition: Definition) -> bool:
    """True if something other than `def __init__` may create instances: a decorator, or a metaclass other than ABCMeta."""
    statement = definition.statement
    assert isinstance(statement, ast.ClassDef)
    metaclasses = [ast.unparse(keyword.value) for keyword in statement.keywords if keyword.arg == "metaclass"]
    assignments = [one for one in statement.body if isinstance(one, ast.Assign)]
    assigned = any(name == "__init__" for name, _ in _attributes([*assignments]))
    return bool(statement.decorator_list) or assigned or any(not name.endswith("ABCMeta") for name in metaclasses)


def _signature(
    sources: Sources, module: Module, statement: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool
) -> Signature:
    arguments = statement.args
    by_place = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(by_place) - len(arguments.defaults)) + list(arguments.defaults)
    taken = [*zip(by_place, defaults, strict=True)][1 if bound else 0 :]
    listed = [*taken, *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return Signature(
        {one.arg: _parameter(_annotated(sources, module, one.annotation), default) for one, default in listed},
        tuple(one.arg for one, _ in taken),
        arguments.kwarg is not None,
        arguments.vararg is not None,
    )


def _parameter(annotation: Any, default: ast.expr | None) -> Parameter:
    if default is None:
        return Parameter(annotation)
    try:
        return Parameter(with_default(annotation, ast.literal_eval(default)), required=False)
    except (ValueError, TypeError):  # an expression
        return Parameter(annotation, required=False)


def _annotated(sources: Sources, module: Module, node: ast.expr | None) -> Any:
    """Type that an annotation names; Any if only executing the module would show it."""
    try:
        return _Reader(sources, module).read(node)
    except (_UnknownError, SyntaxError, TypeError, ValueError, RecursionError):
        return Any


class _UnknownError(Exception):
    """An expression that only its module can evaluate."""


@dataclass(frozen=True)
class _Reader:
    """Evaluates expressions of one module: annotations, and the constants in them."""

    sources: Sources
    module: Module

    def read(self, node: ast.expr | None) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.read(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return typing.Union[self.read(node.left), self.read(node.right)]  # noqa: UP007
        if isinstance(node, ast.Subscript):
            return self._subscript(node)
        if isinstance(node, ast.Name):
            return self._name(node.id)
        raise _UnknownError

    def _name(self, name: str) -> Any:
        bound = self.module.bindings.get(name, [])
        if not bound and name in _PLAIN:
            return getattr(builtins, name)
        if len(bound) == 1 and isinstance(bound[0], ast.expr):
            return self.read(bound[0])
        if len(bound) != 1 or not isinstance(bound[0], Imported):
            raise _UnknownError
        source = bound[0]
        if source.module in _VOCABULARY:
            return getattr(_VOCABULARY[source.module], source.name, Any)
        other = self.sources.module(source.module)
        if other is None or not source.name:
            raise _UnknownError
        return _Reader(self.sources, other)._name(source.name)

    def _subscript(self, node: ast.Subscript) -> Any:
        outer = self.read(node.value)
        inside = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer is typing.Literal:
            return typing.Literal[tuple(map(self._constant, inside))]
        if outer is typing.Annotated:
            return typing.Annotated[(self.read(inside[0]), *map(self._rule, inside[1:]))]
        if outer in (typing.Callable, collections.abc.Callable):
            return collections.abc.Callable
        items = tuple(... if _is_ellipsis(one) else _annotated(self.sources, self.module, one) for one in inside)
        return outer[items] if len(items) > 1 else outer[items[0]]

    def _rule(self, node: ast.expr) -> Any:
        """A rule of harness.schema.parameters, as `Range(1, 8)`."""
        if not isinstance(node, ast.Call):
            raise _UnknownError
        made = self.read(node.func)
        named = {one.arg: self._constant(one.value) for one in node.keywords if one.arg}
        return made(*map(self._constant, node.args), **named)

    def _constant(self, node: ast.expr) -> Any:
        """A number or a text; or a power of two, as 2**20."""
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and ast.unparse(node.left) == "2":
            return 1 << min(int(self._constant(node.right)), 64)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise _UnknownError from None


def _is_ellipsis(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...
