"""Rehearsal of the tests marked gpu on a machine without one: `REHEARSE=1 pytest -m gpu`.

Their bodies run on the CPU, over gloo. A line that needs a CUDA object stands below `if on_cuda(NAME)`, and is skipped; the
summary of pytest lists the names.
"""

import os
from collections.abc import Mapping, Sequence

import pytest

REHEARSED = os.environ.get("REHEARSE") == "1"
DEVICE = "cpu" if REHEARSED else "cuda"
SKIPPED = "skipped line"
"""Name of the property of a test, in its report and in JUnit XML."""
SMALL: Mapping[str, str] = {"iterations": "1", "warm_up": "1", "global_batch_size": "8"}
"""Work of a rehearsal: it tests code, not figures."""
_skipped: list[str] = []


def on_cuda(line: str) -> bool:
    """Return True on a GPU. In a rehearsal, note that `line` is skipped, and return False."""
    if REHEARSED:
        _skipped.append(line)
    return not REHEARSED


def backend_of(backend: str) -> str:
    """Return the backend, or gloo in a rehearsal."""
    return "gloo" if REHEARSED else backend


def few(overrides: Sequence[str]) -> Sequence[str]:
    """Return overrides that make a rehearsal shorter; on a GPU none of them."""
    return overrides if REHEARSED else ()


def smaller(overrides: Sequence[str]) -> list[str]:
    """Return the overrides; in a rehearsal those of SMALL, and the last one of each key. Options such as --config-dir stay."""
    if not REHEARSED:
        return list(overrides)
    values = {key: value for key, equals, value in (item.partition("=") for item in overrides) if equals}
    others = [item for item in overrides if "=" not in item]
    return [*others, *(f"{key}={value}" for key, value in {**values, **SMALL}.items())]


def note_skipped(item: pytest.Item) -> None:
    """Move the names of the lines that a test skipped into its report."""
    item.user_properties += [(SKIPPED, line) for line in dict.fromkeys(_skipped)]
    _skipped.clear()


def skipped_lines(reports: Sequence[pytest.TestReport]) -> list[str]:
    """Return a line for each skipped line: the test, and the name."""
    pairs = [(report.nodeid, line) for report in reports for name, line in report.user_properties if name == SKIPPED]
    return [f"{test}: {line}" for test, line in dict.fromkeys(pairs)]
