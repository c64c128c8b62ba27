"""Declaration of a configuration key: its default, what it affects, and its help text, in the field's metadata.

- results: other bits or other numbers in the gradients, under at least one option; times may change with them
- times: other times, or other memory, only; analyses between the cases are among them
- conduct: how the run proceeds; no figure depends on it
- location: where things lie
- selection: which cases, probes, launches and analyses there are

Everything that asks which keys count reads these declarations: the digest of a run, resume, the comparison of two runs, --help.
"""

import copy
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

Affects = Literal["results", "times", "conduct", "location", "selection"]
AFFECTS: tuple[str, ...] = get_args(Affects)
_AFFECTS, _HELP = "affects", "help"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Key:
    """A key as it is declared."""

    name: str
    """Dotted, as on a command line."""
    default: Any
    affects: str
    """Empty for an argument of the command, which is no part of a run's configuration."""
    help: str

    @property
    def spelled(self) -> str:
        """The default as it is written on a command line."""
        if isinstance(self.default, list):
            return f"[{','.join(map(str, self.default))}]"
        if isinstance(self.default, dict):
            return f"{{{', '.join(f'{name}: {value}' for name, value in self.default.items())}}}"
        spelled = "null" if self.default is None else str(self.default)
        return spelled.lower() if isinstance(self.default, bool) else spelled


def config_key(default: Value, *, affects: Affects, help: str) -> Value:  # noqa: A002
    """Declare a key of the configuration."""
    return _field(default, {_AFFECTS: affects, _HELP: " ".join(help.split())})


def argument(default: Value, *, help: str) -> Value:  # noqa: A002
    """Declare an argument of the command: it affects nothing that a run's configuration stands for."""
    return _field(default, {_AFFECTS: "", _HELP: " ".join(help.split())})


def option_group() -> dict[str, Any]:
    """Declare an axis, or another group of options. Its parameters are declared by the classes of its options."""
    return _field(dict[str, Any](), {_AFFECTS: "selection", _HELP: ""})


def _field(default: Value, metadata: dict[str, str]) -> Value:
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declared(kind: type[Value]) -> type[Value]:
    """Check a dataclass of keys: each says what it affects, and a nested dataclass is itself declared. Raises TypeError."""
    for name, hint, metadata in _hinted(kind):
        if is_dataclass(hint):
            continue
        if metadata.get(_AFFECTS) not in (*AFFECTS, ""):
            raise TypeError(
                f"{kind.__name__}.{name}: does not say what it affects; accepted: config_key(..., affects={'|'.join(AFFECTS)})"
            )
    return kind


def keys_of(kind: type, prefix: str = "") -> Iterator[Key]:
    """Return every key of a declared dataclass, in the order of its fields, with those of nested ones in their places."""
    for name, hint, metadata in _hinted(kind):
        if isinstance(hint, type) and is_dataclass(hint):
            yield from keys_of(hint, f"{prefix}{name}.")
        else:
            yield Key(prefix + name, _default(kind, name), metadata[_AFFECTS], metadata[_HELP])


def values_of(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the value of every key of a declared dataclass's instance."""
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        found |= values_of(value, f"{prefix}{each.name}.") if is_dataclass(value) else {prefix + each.name: value}
    return found


def _default(kind: type, name: str) -> Any:
    each = next(each for each in fields(kind) if each.name == name)
    return each.default if each.default_factory is MISSING else each.default_factory()


def _hinted(kind: type) -> Iterator[tuple[str, Any, Any]]:
    hints = get_type_hints(kind)
    for each in fields(kind):
        yield each.name, hints[each.name], each.metadata
