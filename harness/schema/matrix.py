"""The matrix: every case that a configuration asks for."""

import itertools
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from harness.schema.case import AXES, Case
from harness.schema.config import BenchmarkConfig, check_size
from harness.schema.seeding import derive_seed
from harness.schema.sweep import variants


def expand_cases(config: BenchmarkConfig) -> list[Case]:
    """Every combination of the selected options; the reductions of one setting stand together.

    Raises RefusedError for more cases than a run may have.
    """
    check_size(config)
    order = sorted(AXES, key=lambda axis: axis == "reduction")
    columns = [[(axis, option, variant) for option, variant in variants(getattr(config, axis))] for axis in order]
    return [_case(cell) for cell in itertools.product(*columns)]


def expected_files(config: BenchmarkConfig, launch: int = 0) -> dict[str, list[str]]:
    """Table to the names of what it holds when a launch is complete: cases; and probes, which the first launch asks."""
    return {"cases": [case.case_id for case in expand_cases(config)], "probes": [] if launch else list(config.probe)}


def ordered_cases(config: BenchmarkConfig, launch: int) -> list[Case]:
    """The cases as a launch goes through them; a shuffled order is another one in each launch, and the same in each run."""
    cases = expand_cases(config)
    if config.order == "shuffled":
        Random(derive_seed(config.seed, "order", str(launch))).shuffle(cases)
    return cases


def option_node(config: BenchmarkConfig, case: Case, axis: str) -> dict[str, Any]:
    """The node of the case's option on `axis`, with the value that a swept parameter has in this case."""
    option = case.options[axis]
    for name, variant in variants(getattr(config, axis)):
        if name == option and _case_parameters(axis, variant) == _parameters_of(case, axis):
            return variant
    raise KeyError(f"{case.case_id} is no case of this configuration")


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
