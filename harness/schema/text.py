"""Texts that come from outside: of names, of results, of what a rank said."""

import re
from collections.abc import Iterator
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


_BRACE = re.compile(r"(\\*)\$\{")


def plain(text: str) -> str:
    """Without characters that would steer a terminal."""
    return _CONTROL.sub(" ", text)


def message_lines(text: str) -> str:
    """As plain, with the text's own ends of lines."""
    return "\n".join(map(plain, text.splitlines()))


def literal(value: Any) -> Any:
    """A container whose texts OmegaConf takes as they stand: what looks like an interpolation is escaped."""
    if isinstance(value, str):
        return _BRACE.sub(lambda found: f"{found[1] * 2}\\${{", value)
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return [literal(item) for item in value] if isinstance(value, list | tuple) else value


def interpolations(value: Any) -> Iterator[str]:
    """Texts in a container that OmegaConf would put something else in the place of."""
    if isinstance(value, str) and any(len(found[1]) % 2 == 0 for found in _BRACE.finditer(value)):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from interpolations(item)
