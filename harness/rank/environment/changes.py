"""What is not as it was when a run began: figures of two environments do not belong into one run."""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.schema.environment import without_noise


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines of what differs between two environment.json, as `versions.torch: 2.12.0, now 2.13.0`."""
    then, here = dict(_leaves(without_noise(before))), dict(_leaves(without_noise(now)))
    keys = [*then, *(key for key in here if key not in then)]
    return [f"{key}: {then.get(key)}, now {here.get(key)}" for key in keys if then.get(key) != here.get(key)]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        items = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(items, Mapping):
            yield from _leaves({str(name): item for name, item in items.items()}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
