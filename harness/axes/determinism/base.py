"""Determinism: whether torch may choose kernels whose result varies between runs."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from harness.schema.context import Option


class Determinism(Option):
    """Flags around everything that the case computes."""

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()

    def impossible(self, error: str) -> str | None:
        """Return why this option makes the operation that raised `error` impossible; None if the error has another cause."""
        return None
