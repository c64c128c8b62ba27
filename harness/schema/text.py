"""Texts that come from outside: of names, of results, of what a rank said."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

_BREAKS = ("Cc", "Zl", "Zp")
"""Unicode categories of characters that control a terminal or end a line; a space replaces them."""
_UNSEEN = ("Cf", "Cs", "Co", "Cn")
"""Unicode categories of characters that are invisible or change the direction of text: formats (U+202E among
them), lone surrogates, characters without a meaning."""
_BRACE = re.compile(r"(\\*)\$\{")
_SPACES = re.compile("\0+")


def plain(text: str) -> str:
    """Text for a terminal, a page or a table: control characters are replaced, all others are kept."""
    if text.isascii() and text.isprintable():
        return text
    return _SPACES.sub(" ", "".join(map(_harmless, text)))


def _harmless(character: str) -> str:
    category = unicodedata.category(character)
    if category in _BREAKS:
        return "\0"
    return f"<U+{ord(character):04X}>" if category in _UNSEEN else character


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
