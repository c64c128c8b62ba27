"""Parameters of an option that are given as a list: one case each."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from harness.schema.refusal import RefusedError

SWEEPABLE = "_sweepable_"
"""The key under which an option's YAML lists the parameters that may be given as a list."""

_OPTION = re.compile(r"\w[\w.+=@-]{0,99}")


def check_sweeps(axis: str, options: dict[str, Any]) -> None:
    """Raises RefusedError for an option that is none, and for a sweep that makes no case, or the same case twice."""
    for option, node in options.items():
        if not _OPTION.fullmatch(option):
            raise RefusedError(f"{axis}: {option!r} cannot be an option: expected a name that can be part of a file's")
        if not isinstance(node, dict):
            raise RefusedError(f"{axis}.{option}={node}: expected an option's parameters, as in {axis}.{option}.NAME=VALUE")
        names = node.get(SWEEPABLE, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError(f"{axis}.{option}.{SWEEPABLE}={names}: expected names of parameters, as [size]")
        for key in names:
            _check_sweep(f"{axis}.{option}.{key}", node.get(key))


def _check_sweep(key: str, values: Any) -> None:
    if not isinstance(values, list):
        return
    if not values:
        raise RefusedError(f"{key}=[]: an empty list makes no case")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise RefusedError(f"{key}: {twice} is listed twice")


def count_variants(options: dict[str, Any]) -> int:
    """Number of what `variants` gives."""
    swept = ([node.get(key) for key in node.get(SWEEPABLE, [])] for node in options.values())
    return sum(math.prod(len(values) for values in lists if isinstance(values, list)) for lists in swept)


def variants(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option with its node, once for each combination of swept values; the list of sweepable names is gone."""
    for option, node in options.items():
        node = dict(node)
        swept = {key: node[key] for key in node.pop(SWEEPABLE, []) if isinstance(node.get(key), list)}
        for values in itertools.product(*swept.values()):
            yield option, {**node, **dict(zip(swept, values, strict=True))}
