"""The environment of a run as a table: what is equal on neighbouring ranks stands once."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import pandas as pd

from harness.report.text import mebibytes, yes
from harness.schema.environment import RANK, without_noise

Facts = Mapping[str, Any]

_APART = (
    "hosts",
    "ranks",
    "conditions",
    "versions",
    "environment_variables",
    "variables_differ",
    "data",
    "commit",
    "dirty",
    "argv",
)
"""Keys that are told in words of their own."""


def environment_table(environment: Facts) -> pd.DataFrame:
    """Columns key and value, of what environment.json holds."""
    rows = [*_plain(environment), *_hosts(environment), *_ranks(environment), *_mappings(environment)]
    return pd.DataFrame([(key, value) for key, value in rows if value], columns=["key", "value"])


def _plain(environment: Facts) -> Iterator[tuple[str, str]]:
    yield "command", " ".join(environment.get("argv", []))
    if environment.get("commit"):
        yield "commit", f"{environment['commit']}{', with changes on top' if environment.get('dirty') else ''}"
    yield "versions", _spelled(environment.get("versions", {}))
    yield from ((key, _spelled(value)) for key, value in environment.items() if key not in _APART)


def _hosts(environment: Facts) -> Iterator[tuple[str, str]]:
    for host in environment.get("hosts", []):
        yield f"host {host.get('host')}", _in_words(host, ("host", "topology"))
        for link, pairs in _joined(host.get("topology") or {}):
            yield f"topology of {host.get('host')}: {link}", pairs
    for note in environment.get("conditions", []):
        for host in note.get("hosts", []):
            yield f"launch {note.get('launch')}, {note.get('began')}", _spelled(host)


def _joined(topology: Facts) -> Iterator[tuple[str, str]]:
    """By what devices are joined, and which pairs of them."""
    links = sorted((topology.get("links") or {}).items(), key=lambda pair: str(pair[1]))
    for link, pairs in groupby(links, key=lambda pair: pair[1]):
        yield str(link), " ".join(pair for pair, _ in pairs)


def _ranks(environment: Facts) -> Iterator[tuple[str, str]]:
    """Ranks of equal facts in a row are told together."""
    told = [_in_words(without_noise(rank, RANK)) for rank in environment.get("ranks", [])]
    start = 0
    for words, group in groupby(told):
        end = start + len(list(group)) - 1
        yield (f"rank {start}" if start == end else f"ranks {start}-{end}"), words
        start = end + 1
    for note in environment.get("conditions", []):
        for moment in ("before", "after"):
            yield f"launch {note.get('launch')}, {moment}", _ranges([seen.get(moment, {}) for seen in note.get("ranks", [])])


def _ranges(states: list[Facts]) -> str:
    """Clocks and the like of all ranks: the least and the largest number of each."""
    known = [
        {key: value for key, value in state.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        for state in states
    ]
    keys = dict.fromkeys(key for state in known for key in state)
    spans = {key: sorted(state[key] for state in known if key in state) for key in keys}
    return ", ".join(f"{key.replace('_', ' ')} {span[0]:g} to {span[-1]:g}" for key, span in spans.items())


def _in_words(facts: Facts, without: tuple[str, ...] = ()) -> str:
    kept = {key: value for key, value in facts.items() if key not in without and value is not None}
    return _spelled({key.removesuffix("_bytes"): _in_units(key, value) for key, value in kept.items()})


def _mappings(environment: Facts) -> Iterator[tuple[str, str]]:
    yield from sorted(environment.get("environment_variables", {}).items())
    for name, values in environment.get("variables_differ", {}).items():
        yield f"{name} by rank", "; ".join(f"{value} on {ranks}" for value, ranks in values.items())
    for name, facts in environment.get("data", {}).items():
        yield f"data {name}", _spelled(facts)


def _in_units(key: str, value: Any) -> Any:
    return f"{mebibytes(value)} MiB" if key.endswith("_bytes") else value


def _spelled(value: Any) -> str:
    """Without what is not known."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {told}" for key, inner in value.items() if (told := _spelled(inner)))
    if isinstance(value, list):
        return "; ".join(map(_spelled, value))
    if isinstance(value, bool):
        return yes(value)
    return "" if value is None else str(value)
