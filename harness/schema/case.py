"""Case: one cell of the matrix that a configuration asks for."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from harness.schema.refusal import RefusedError

if TYPE_CHECKING:  # config checks itself against AXES
    from harness.schema.config import BenchmarkConfig

SWEEPABLE = "_sweepable_"
"""The key under which an option's YAML lists the parameters that may be given as a list: one case each."""


@dataclass(frozen=True)
class Case:
    """One option of every axis, and the parameters of those options."""

    workload: str
    reduction: str
    normalization: str
    sharding: str
    aggregation: str
    sync: str
    precision: str
    parameters: tuple[tuple[str, Any], ...] = ()
    """Sorted ("axis.parameter", value) pairs; values are JSON's. Nested parameters are dotted: ("workload.model.width", 32)."""

    @property
    def options(self) -> dict[str, str]:
        """Axis to option."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def case_id(self) -> str:
        """Readable, unique in a run, equal between runs that ask for the same, and safe as a file name."""
        digest = hashlib.sha256(json.dumps(self.parameters).encode()).hexdigest()[:8]
        return ".".join(self.options.values()) + (f"-{digest}" if self.parameters else "")

    @property
    def setting(self) -> "Case":
        """The case with its reduction left open: reductions of one setting are compared in pairs."""
        kept = tuple(pair for pair in self.parameters if not pair[0].startswith("reduction."))
        return replace(self, reduction="", parameters=kept)


AXES = tuple(field.name for field in fields(Case) if field.name != "parameters")


def expand_cases(config: "BenchmarkConfig") -> list[Case]:
    """Every combination of the selected options; the reductions of one setting stand together."""
    order = sorted(AXES, key=lambda axis: axis == "reduction")
    columns = [[(axis, option, variant) for option, variant in _variants(getattr(config, axis))] for axis in order]
    return [_case(cell) for cell in itertools.product(*columns)]


def check_sweeps(config: "BenchmarkConfig") -> None:
    """Raises RefusedError for a swept parameter whose list makes no case, or the same case twice."""
    for axis in AXES:
        for option, node in getattr(config, axis).items():
            for key in (node or {}).get(SWEEPABLE, []):
                _check_sweep(f"{axis}.{option}.{key}", node.get(key))


def _check_sweep(key: str, values: Any) -> None:
    if not isinstance(values, list):
        return
    if not values:
        raise RefusedError(f"{key}=[]: an empty list makes no case")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise RefusedError(f"{key}: {twice} is listed twice")


def option_node(config: "BenchmarkConfig", case: Case, axis: str) -> dict[str, Any]:
    """The node of the case's option on `axis`, with the value that a swept parameter has in this case."""
    option = case.options[axis]
    for name, variant in _variants(getattr(config, axis)):
        if name == option and _case_parameters(axis, variant) == _parameters_of(case, axis):
            return variant
    raise KeyError(f"{case.case_id} is no case of this configuration")


def _variants(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for option, node in options.items():
        node = dict(node or {})
        swept = {key: node[key] for key in node.pop(SWEEPABLE, []) if isinstance(node.get(key), list)}
        for values in itertools.product(*swept.values()):
            yield option, {**node, **dict(zip(swept, values, strict=True))}


def _case(cell: tuple[tuple[str, str, dict[str, Any]], ...]) -> Case:
    parameters = sorted(pair for axis, _, variant in cell for pair in _case_parameters(axis, variant))
    return Case(**{axis: option for axis, option, _ in cell}, parameters=tuple(parameters))


def _case_parameters(axis: str, variant: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((key, value) for key, value in _leaves(axis, variant) if key != f"{axis}._target_"))


def _parameters_of(case: Case, axis: str) -> tuple[tuple[str, Any], ...]:
    return tuple(pair for pair in case.parameters if pair[0].startswith(f"{axis}."))


def _leaves(prefix: str, node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", json.dumps(value) if isinstance(value, dict | list) else value
