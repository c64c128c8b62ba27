"""Accepted values of an option's parameters, as the annotations of its constructor declare them.

Two readers use them: the launcher, which reads annotations from source files and imports no torch (launch/signatures.py), and
the ranks, which have the classes.
"""

import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from harness.schema.refusal import RefusedError
from harness.schema.units import BYTES, to_bytes

MOST = 2**31 - 1
_SHOWN = 80
"""Largest number of characters of a value in an error."""


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; with `above`, more than `least`."""

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    """True if `most` itself is excluded."""

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value; empty when nothing is."""
        if value < self.least or (self.above and value == self.least):
            return f"not more than {self.least:g}" if self.above else f"less than {self.least:g}"
        if value > self.most or (self.below and value == self.most):
            return f"not less than {_figure(self.most)}" if self.below else f"more than {_figure(self.most)}"
        return ""

    def __str__(self) -> str:
        low = "" if self.least == -math.inf else f"more than {self.least:g}" if self.above else f"at least {self.least:g}"
        high = "" if self.most == math.inf else f"{'less than' if self.below else 'at most'} {_figure(self.most)}"
        return " and ".join(filter(None, (low, high)))


@dataclass(frozen=True)
class NotEmpty:
    """Lists of one item or more."""

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value; empty when nothing is."""
        return "" if value else "an empty list"

    def __str__(self) -> str:
        return "not empty"


@dataclass(frozen=True)
class Distinct:
    """Lists without duplicates."""

    def problem(self, value: Any) -> str:
        """Return what is wrong with a value; empty when nothing is."""
        twice = next((item for item in value if value.count(item) > 1), None)
        return "" if twice is None else f"{shown(twice)} is listed twice"

    def __str__(self) -> str:
        return "each different"


@dataclass(frozen=True)
class InBytes:
    """Sizes in bytes: a number, or text with a unit."""

    def __str__(self) -> str:
        return BYTES


@dataclass(frozen=True)
class AtLeast:
    """Numbers that are not less than another parameter's."""

    parameter: str

    def compare(self, value: Any, other: Any) -> str:
        """Return what is wrong with a value, given the value of the other parameter; empty when nothing is."""
        return f"less than {self.parameter}={other}" if value < other else ""


@dataclass(frozen=True)
class MultipleOf:
    """Numbers that another parameter's divides."""

    parameter: str

    def compare(self, value: Any, other: Any) -> str:
        """Return what is wrong with a value, given the value of the other parameter; empty when nothing is."""
        return f"not a multiple of {self.parameter}={other}" if value % other else ""


Count = Annotated[int, Range(1, MOST)]
"""One or more."""
Several = Annotated[int, Range(2, MOST)]
"""Two or more."""
Whole = Annotated[int, Range(0, MOST)]
"""Zero or more."""
Width = Annotated[int, Range(1, 2**17)]
"""Width of a layer: the square of a larger one fits no memory."""
Positive = Annotated[float, Range(0, above=True)]
Probability = Annotated[float, Range(0, 1, above=True, below=True)]
"""Between 0 and 1, both excluded."""
Bytes = Annotated[int, InBytes(), Range(1, 2**50)]
"""A size in bytes, as 4096 or 64M."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor."""

    annotation: Any = Any
    required: bool = True


@dataclass(frozen=True)
class Signature:
    """Parameters of a constructor, in order."""

    parameters: Mapping[str, Parameter]
    positional: tuple[str, ...] = ()
    """Names of positional parameters."""
    further: bool = False
    """True if it accepts parameters of any other name."""
    further_positional: bool = False


class _UnfitError(Exception):
    """A value that an annotation does not accept; the problem is its text."""


def signature_of(maker: Callable[..., Any]) -> Signature | None:
    """Signature of a class or a function in this process; None if it cannot be determined."""
    try:
        found = inspect.signature(maker, follow_wrapped=False).parameters.values()  # a wrapper may take more than it wraps
        hints = typing.get_type_hints(maker.__init__ if isinstance(maker, type) else maker, include_extras=True)  # type: ignore[misc]
    except Exception:  # an annotation may be any text, and evaluating it raises anything
        return None
    named = [one for one in found if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return Signature(
        {one.name: _parameter(hints.get(one.name, Any), one.default, one.empty) for one in named},
        tuple(one.name for one in named if one.kind != one.KEYWORD_ONLY),
        any(one.kind == one.VAR_KEYWORD for one in found),
        any(one.kind == one.VAR_POSITIONAL for one in found),
    )


def _parameter(hint: Any, default: Any, empty: Any) -> Parameter:
    return Parameter(hint) if default is empty else Parameter(with_default(hint, default), required=False)


def with_default(annotation: Any, default: Any) -> Any:
    """Annotation of a parameter that has a default: `int = None` also accepts null, and `int = 0.5` is ignored."""
    if default is None:
        return Union[annotation, None]  # noqa: UP007  (an annotation may be a text, which has no `|`)
    try:
        _fitted(annotation, list(default) if isinstance(default, tuple) else default)
    except _UnfitError:
        return Any
    return annotation


def check_parameters(key: str, node: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """Return the node of an option with its values converted by the signature: sizes with a unit become numbers.

    Raises RefusedError naming the first parameter whose value is not accepted.
    """
    given = {name: value for name, value in node.items() if not _is_hydras(name)}
    _check_names(key, node, given, signature)
    made = {name: accepted(f"{key}.{name}", _annotation(signature, name), value) for name, value in given.items()}
    for name, value in made.items():
        _check_beside(f"{key}.{name}", value, made, _annotation(signature, name))
    return {**node, **made}


def _is_hydras(name: object) -> bool:
    return name in ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")


def _annotation(signature: Signature, name: str) -> Any:
    known = signature.parameters.get(name)
    return known.annotation if known else Any


def _check_names(key: str, node: Mapping[str, Any], given: Mapping[str, Any], signature: Signature) -> None:
    places = node.get("_args_", [])
    by_place = signature.positional[: len(places)]
    if len(places) > len(signature.positional) and not signature.further_positional:
        raise RefusedError(f"{key}._args_: {len(places)} are given; accepted: at most {len(signature.positional)}")
    for name in given:
        if name in by_place or (name not in signature.parameters and not signature.further):
            problem = "given twice, by _args_ too" if name in by_place else f"{key.rpartition('.')[2]} has no parameter {name}"
            raise RefusedError(f"{key}.{name}: {problem}; accepted: {', '.join(signature.parameters) or 'no parameter'}")
    missing = [name for name, one in signature.parameters.items() if one.required and name not in (*given, *by_place)]
    if missing and not node.get("_partial_"):
        annotation = signature.parameters[missing[0]].annotation
        raise RefusedError(f"{key}.{missing[0]}: not given, and it has no default; accepted: {describe(annotation)}")


def _check_beside(key: str, value: Any, beside: Mapping[str, Any], annotation: Any) -> None:
    for rule in _rules(annotation):
        if isinstance(rule, AtLeast | MultipleOf) and isinstance(beside.get(rule.parameter), int):
            problem = rule.compare(value, beside[rule.parameter])
            if problem:
                raise RefusedError(f"{key}={shown(value)}: {problem}; accepted: {describe(annotation)}")


def _rules(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()


def accepted(key: str, annotation: Any, value: Any) -> Any:
    """Return `value` converted to the annotation. Raises RefusedError."""
    try:
        return _fitted(annotation, value)
    except _UnfitError as error:
        raise RefusedError(f"{key}={shown(value)}: {error}; accepted: {describe(annotation)}") from None


def _fitted(annotation: Any, value: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _fitted_rules(annotation, value)
    if origin in (Union, types.UnionType):
        return _fitted_any(get_args(annotation), value)
    if origin is Literal:
        return _fitted_choice(get_args(annotation), value)
    if _is_list(annotation):
        return _fitted_list(annotation, value)
    if annotation is Callable or origin is Callable:
        if not isinstance(value, dict) or "_target_" not in value:
            raise _UnfitError(kind_of(value))
        return value
    return _fitted_plain(annotation, value)


def _fitted_plain(annotation: Any, value: Any) -> Any:
    """Convert to a plain type; any other class is checked by its own constructor."""
    types_of = _plain(annotation)
    if types_of is None:
        return value
    if type(value) not in types_of[1] or (isinstance(value, float) and not math.isfinite(value)):
        raise _UnfitError(kind_of(value))
    return value


_PLAIN: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
    type(None): ("null", (type(None),)),
    dict: ("a mapping", (dict,)),
}
"""Plain type to its name, and to the types of accepted values; true is not a number."""


def _plain(annotation: Any) -> tuple[str, tuple[type, ...]] | None:
    plain = annotation is None or isinstance(annotation, type)  # others, as {"help": "text"}, may have no hash
    return _PLAIN.get(type(None) if annotation is None else annotation) if plain else None


def _fitted_rules(annotation: Any, value: Any) -> Any:
    kind, *rules = get_args(annotation)
    if isinstance(value, str) and any(isinstance(rule, InBytes) for rule in rules):
        try:
            value = to_bytes(value)
        except ValueError as error:
            raise _UnfitError(str(error).partition(";")[0]) from error
    value = _fitted(kind, value)
    for rule in rules:
        problem = rule.problem(value) if hasattr(rule, "problem") else ""
        if problem:
            raise _UnfitError(problem)
    return value


def _fitted_any(kinds: Sequence[Any], value: Any) -> Any:
    problems = []
    for kind in kinds:
        try:
            return _fitted(kind, value)
        except _UnfitError as error:
            problems.append(str(error))
    raise _UnfitError(next((problem for problem in problems if problem != kind_of(value)), problems[0]))


def _fitted_choice(choices: Sequence[Any], value: Any) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _UnfitError("unknown" if isinstance(value, str) else kind_of(value))
    return value


def _fitted_list(annotation: Any, value: Any) -> Any:
    if not isinstance(value, list):
        raise _UnfitError(kind_of(value))
    kinds = get_args(annotation)
    if get_origin(annotation) is tuple and kinds and kinds[-1] is not Ellipsis:
        if len(value) != len(kinds):
            raise _UnfitError(f"has {len(value)} values")
        return [_fitted(kind, item) for kind, item in zip(kinds, value, strict=True)]
    return [_fitted((*kinds, Any)[0], item) for item in value]


def _is_list(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) in (list, tuple, Sequence, Iterable)


def describe(annotation: Any) -> str:
    """Accepted values in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([describe(inside[0]), *filter(None, map(_rule, inside[1:]))])
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, inside))
    if origin is Literal:
        return f"one of {', '.join(map(shown, inside))}"
    if origin is tuple and inside and inside[-1] is not Ellipsis:
        return f"a list of {len(inside)}: {', '.join(map(describe, inside))}"
    if _is_list(annotation):
        return f"a list{''.join(f' of: {describe(kind)}' for kind in inside[:1])}"
    if annotation is Callable or origin is Callable:
        return "a mapping with _target_, and _partial_: true"
    return (_plain(annotation) or ("any value",))[0]


def _rule(rule: Any) -> str:
    if isinstance(rule, AtLeast):
        return f"at least {rule.parameter}"
    return f"a multiple of {rule.parameter}" if isinstance(rule, MultipleOf) else str(rule)


def kind_of(value: Any) -> str:
    """Return what a value is, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not finite"
    names = {bool: "true or false", int: "a whole number", float: "a floating-point number", str: "text", type(None): "null"}
    names |= {list: "a list", dict: "a mapping"}
    return f"is {names.get(type(value), type(value).__name__)}"


def shown(value: Any) -> str:
    """Value as written on a command line, cut to one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _figure(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else f"{number:g}"
