"""Keys that affect figures, and in which runs differ."""

from collections.abc import Sequence

from harness.schema.config import BenchmarkConfig, values_affecting


def differing_keys(configs: Sequence[BenchmarkConfig]) -> list[str]:
    """Return the dotted names of the keys that affect results or times and have several values here."""
    values = [values_affecting(config, "results", "times") for config in configs]
    return [name for name in values[0] if len({repr(each.get(name)) for each in values}) > 1]
