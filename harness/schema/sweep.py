"""Parameters of an option that are given as a list: one case each."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.schema.refusal import RefusedError

SWEEPABLE = "_sweepable_"
"""The key under which an option's YAML lists the parameters that may be given as a list."""

MOST_CASES = 100_000
"""Largest number of cases of a launch: a longer list takes gigabytes, and its report takes minutes."""


def check_sweeps(axis: str, options: dict[str, Any]) -> None:
    """Raises RefusedError for an option that is none, and for a sweep that makes no case, or the same case twice."""
    for option, node in options.items():
        if not isinstance(node, dict):
            raise RefusedError(f"{axis}.{option}={node}: expected an option's parameters, as in {axis}.{option}.NAME=VALUE")
        _check_names(f"{axis}.{option}.{SWEEPABLE}", node.get(SWEEPABLE, []))
        for key in node.get(SWEEPABLE, []):
            _check_sweep(f"{axis}.{option}.{key}", node.get(key))
        _check_finite(f"{axis}.{option}", node)
    check_count(count_variants(options), axis)


def check_count(cases: int, what: str) -> None:
    """Raises RefusedError for more cases than a run can list."""
    if cases > MOST_CASES:
        raise RefusedError(f"{what}: makes {cases} cases; accepted: at most {MOST_CASES}; try fewer options or shorter lists")


def _check_names(key: str, names: Any) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise RefusedError(f"{key}={names}: not names of parameters; accepted: a list of different names, as [NAME]")


def _check_sweep(key: str, values: Any) -> None:
    if not isinstance(values, list):
        return
    if not values:
        raise RefusedError(f"{key}=[]: an empty list makes no case")
    (text, times), *_ = Counter(map(repr, values)).most_common(1)  # true is not 1
    if times > 1:
        raise RefusedError(f"{key}: {text} is listed twice")


def _check_finite(key: str, value: Any) -> None:
    """Raise RefusedError for NaN, which is not equal to itself: its case could not be found again."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_finite(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            _check_finite(key, item)
    elif isinstance(value, float) and math.isnan(value):
        raise RefusedError(f"{key}={value}: not a number; accepted: a value that is equal to itself")


def swept(node: dict[str, Any]) -> dict[str, list[Any]]:
    """Parameters of an option that are given as a list of values, one case each."""
    return {key: node[key] for key in node.get(SWEEPABLE, []) if isinstance(node.get(key), list)}


def count_variants(options: dict[str, Any]) -> int:
    """Count `variants` without creating them."""
    return sum(math.prod(map(len, swept(node).values())) for node in options.values())


def variants(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option with its node, once for each combination of swept values; the list of sweepable names is gone."""
    for option, node in options.items():
        lists = swept(node)
        own = {key: value for key, value in node.items() if key != SWEEPABLE}
        for values in itertools.product(*lists.values()):
            yield option, {**own, **dict(zip(lists, values, strict=True))}
