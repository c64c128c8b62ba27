"""Arguments of the command as flags: --resume RUN_DIR, --dry-run, --world-sizes 1,2,4."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.schema.arguments import Arguments
from harness.schema.keys import Key, keys_of
from harness.schema.refusal import RefusedError


def flag(name: str) -> str:
    """Return the flag of an argument, as --dry-run."""
    return f"--{name.replace('_', '-')}"


def key_of(override: str) -> str:
    """Return the key of `key=value`, `+key=value` or `~key`."""
    return override.partition("=")[0].lstrip("+~")


def flagged() -> Iterator[Key]:
    """Return the arguments that have a flag: all but those of nccl_matrix, which are keys with several values."""
    return (each for each in keys_of(Arguments) if "." not in each.name)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Let the parser take the flags; one that is not given is None."""
    for each in flagged():
        if isinstance(each.default, bool):
            parser.add_argument(flag(each.name), dest=each.name, action="store_const", const=True)
        else:
            parser.add_argument(flag(each.name), dest=each.name, metavar=metavar(each).strip())


def flags_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments whose flags were given. Raises RefusedError."""
    given = {each.name: getattr(parsed, each.name) for each in flagged() if getattr(parsed, each.name) is not None}
    if "world_sizes" in given:
        given["world_sizes"] = _numbers("world_sizes", given["world_sizes"])
    return given


def check_given_once(overrides: Sequence[str], flags: Mapping[str, Any]) -> None:
    """Raise RefusedError for an argument that is given as a flag and as key=value."""
    for override in overrides:
        name = key_of(override)
        if name in flags:
            raise RefusedError(f"{override} and {flag(name)}: given twice; accepted: one of them; try {flag(name)} alone")


def metavar(each: Key) -> str:
    """Return what stands behind a flag in --help."""
    if isinstance(each.default, bool):
        return ""
    return " 1,2,4" if isinstance(each.default, list) else " RUN_DIR"


def _numbers(name: str, text: str) -> list[int]:
    """Return the whole numbers of a list with commas; brackets around it, as in `key=[1,2]`, are accepted."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return [int(number) for number in inner.split(",")]
    except ValueError as error:
        raise RefusedError(
            f"{flag(name)} {text or repr(text)}: not a list of whole numbers; accepted: as {flag(name)} 1,2,4"
        ) from error
