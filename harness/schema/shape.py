"""Declared shapes of JSON files. Reading a value drops each part that does not have its shape, and names it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MISSING = object()
_DEEPEST = 8
_LARGEST = 2**63
_CPUS = re.compile(r"\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*", re.ASCII)
Problems = list[str]


@dataclass(frozen=True)
class Shape:
    """A value of one kind; null means unknown."""

    expected: str
    fits: Callable[[Any], bool]

    def fit(self, value: Any, place: str, problems: Problems) -> Any:
        """The value, or MISSING with a line in `problems`."""
        if value is None or self.fits(value):
            return value
        problems.append(f"{place}: expected {self.expected}, found {_kind(value)}")
        return MISSING


@dataclass(frozen=True)
class Rows:
    """A list; an entry that does not fit becomes `blank`, which keeps the positions of the others, or is left out."""

    of: "Any"
    blank: Callable[[], Any] | None = None

    def fit(self, value: Any, place: str, problems: Problems) -> Any:
        """See Shape.fit."""
        if not isinstance(value, list):
            return _other("a list", value, place, problems)
        fitted = (self.of.fit(entry, f"{place}[{number}]", problems) for number, entry in enumerate(value))
        return list(self._kept(fitted))

    def _kept(self, entries: Iterator[Any]) -> Iterator[Any]:
        for entry in entries:
            if entry is not MISSING:
                yield entry
            elif self.blank is not None:
                yield self.blank()


@dataclass(frozen=True)
class Record:
    """A mapping: declared keys have their shapes, all others `others`."""

    keys: Mapping[str, Any]
    others: Any = None

    def fit(self, value: Any, place: str, problems: Problems) -> Any:
        """See Shape.fit."""
        if not isinstance(value, dict):
            return _other("a mapping", value, place, problems)
        others = self.others or ANY
        inside = f"{place}." if place else ""
        fitted = {key: self.keys.get(key, others).fit(entry, f"{inside}{key}", problems) for key, entry in value.items()}
        return {key: entry for key, entry in fitted.items() if entry is not MISSING}


def _other(expected: str, value: Any, place: str, problems: Problems) -> Any:
    """Return MISSING, with a line in `problems` unless the value is null, which means unknown."""
    if value is not None:
        problems.append(f"{place or 'the file'}: expected {expected}, found {_kind(value)}")
    return MISSING


def _kind(value: Any) -> str:
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return kinds.get(type(value), "null")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST


def _real(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _plain(value: Any, depth: int = 0) -> bool:
    """True for JSON of a bounded depth with numbers that floats can hold."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict | list):
        return all(_plain(inner, depth + 1) for inner in (value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, str | bool) or _real(value)


TEXT = Shape("text", lambda value: isinstance(value, str))
FLAG = Shape("true or false", lambda value: isinstance(value, bool))
WHOLE = Shape("a whole number", _whole)
COUNT = Shape("a whole number of at least 0", lambda value: _whole(value) and value >= 0)
REAL = Shape("a finite number", _real)
CPUS = Shape("CPUs, as 0-3,8", lambda value: isinstance(value, str) and _CPUS.fullmatch(value) is not None)
ANY = Shape(f"finite numbers and text, at most {_DEEPEST} levels deep", _plain)
