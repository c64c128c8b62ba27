"""Options checked before a rank starts: each `_target_` is found, and its parameters fit, without executing the user's code."""

import ast
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from harness.schema.case import AXES, PROBE, TABLE
from harness.schema.config import BenchmarkConfig
from harness.schema.parameters import Signature, accepted, check_parameters, shown
from harness.schema.refusal import RefusedError
from harness.schema.sweep import SWEEPABLE, check_sweeps, swept, variants
from launch.signatures import Lineage, read_signature
from launch.source import Definition, Other, Sources

_CONVERSIONS = ("none", "partial", "object", "all")
"""Values of Hydra's `_convert_`."""


def checked_options(config: BenchmarkConfig, search_path: list[str]) -> BenchmarkConfig:
    """Return the configuration with the values that its options' constructors declare: sizes with a unit as numbers.

    `search_path` comes before Python's own. Raises RefusedError for the first `_target_` that no module defines, that is no
    option of its axis, or that does not accept a parameter, as far as source files show it: the ranks check the rest.
    """
    sources = Sources(search_path)
    made = {axis: _checked_axis(sources, axis, getattr(config, axis)) for axis in (*AXES, PROBE)}
    for axis, options in made.items():
        check_sweeps(axis, options)
    return replace(config, **made)  # type: ignore[arg-type]


def _checked_axis(sources: Sources, axis: str, options: dict[str, Any]) -> dict[str, Any]:
    return {option: _checked_option(sources, axis, option, node) for option, node in options.items()}


def _checked_option(sources: Sources, axis: str, option: str, node: Any) -> dict[str, Any]:
    key = f"{axis}.{option}"
    if not isinstance(node, dict) or "_target_" not in node:
        raise RefusedError(f"{key}: has no _target_, the class that makes it")
    definition = _find(sources, key, node)
    if node.get("_partial_"):
        raise RefusedError(f"{key}._partial_=true: makes no option; accepted: false; try {key}._partial_=false")
    _check_base(sources, axis, key, node["_target_"], definition)
    signature = _signature(sources, definition)
    _check_sweepable(key, node, signature)
    checked: dict[str, Any] = {name: _checked_inside(sources, f"{key}.{name}", value) for name, value in node.items()}
    return checked if signature is None else _fitted(key, option, checked, signature)


def _fitted(key: str, option: str, node: dict[str, Any], signature: Signature) -> dict[str, Any]:
    """Check the node against the signature, for each case that its lists make."""
    listed = swept(node)
    made = dict[str, Any]()
    for _, variant in variants({option: node}):
        made = check_parameters(key, variant, signature)
    types = {name: signature.parameters[name].annotation for name in listed}
    lists = {name: [accepted(f"{key}.{name}", types[name], value) for value in node[name]] for name in listed}
    return {**node, **made, **lists}


def _find(sources: Sources, key: str, node: Mapping[str, Any]) -> Definition | Other:
    target = str(node["_target_"])
    _check_hydras(key, node)
    try:
        found = sources.find(target)
    except ValueError as error:
        raise RefusedError(f"{key}._target_={target}: {error}") from error
    if found is Other.MODULE:
        raise RefusedError(f"{key}._target_={target}: is a module; accepted: a class, as package.module.Class")
    return found


def _check_hydras(key: str, node: Mapping[str, Any]) -> None:
    """Raise RefusedError for keys that Hydra's instantiate would not accept."""
    for name in ("_partial_", "_recursive_"):
        if not isinstance(node.get(name, False), bool):
            raise RefusedError(f"{key}.{name}={shown(node[name])}: not a choice; accepted: true or false")
    if node.get("_convert_", "all") not in _CONVERSIONS:
        raise RefusedError(f"{key}._convert_={shown(node['_convert_'])}: unknown; accepted: one of {', '.join(_CONVERSIONS)}")
    if not isinstance(node.get("_args_", []), list):
        raise RefusedError(f"{key}._args_={shown(node['_args_'])}: no list; accepted: a list of values")


def _check_base(sources: Sources, axis: str, key: str, target: str, definition: Definition | Other) -> None:
    base = f"harness.probes.base.{PROBE.capitalize()}" if axis == PROBE else TABLE[axis].base
    if str(target).partition(".")[0] in sys.stdlib_module_names:  # builtins have no source to read
        raise RefusedError(f"{key}._target_={target}: no option of {axis}; accepted: a class that inherits from {base}")
    if not isinstance(definition, Definition) or not isinstance(definition.statement, ast.ClassDef):
        return
    lineage = Lineage(sources, definition)
    if lineage.whole and base not in lineage.names():
        raise RefusedError(f"{key}._target_={target}: no option of {axis}; accepted: a class that inherits from {base}")
    abstract = lineage.abstract() if lineage.whole else []
    if abstract:
        raise RefusedError(f"{key}._target_={target}: an abstract class; accepted: one that implements {', '.join(abstract)}")


def _signature(sources: Sources, definition: Definition | Other) -> Signature | None:
    return read_signature(sources, definition) if isinstance(definition, Definition) else None


def _check_sweepable(key: str, node: Mapping[str, Any], signature: Signature | None) -> None:
    known = None if signature is None or signature.further else signature.parameters
    for name in node.get(SWEEPABLE, []):
        if known is not None and name not in known:
            raise RefusedError(f"{key}.{SWEEPABLE}: {name}: no such parameter; accepted: {', '.join(known) or 'an empty list'}")


def _checked_inside(sources: Sources, key: str, value: Any) -> Any:
    """Check a value of an option: each `_target_` in it, at any depth."""
    inside = partial(_checked_inside, sources)
    if isinstance(value, list):
        return [inside(key, item) for item in value]
    if not isinstance(value, dict):
        return value
    definition = _find(sources, key, value) if "_target_" in value else None
    made = {name: inside(f"{key}.{name}", item) for name, item in value.items()}
    signature = _signature(sources, definition) if definition is not None else None
    return made if signature is None else check_parameters(key, made, signature)
