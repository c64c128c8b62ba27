"""Execution: how the model's operations come to run."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from harness.schema.context import Option


class Execution(Option):
    """One way of running a module."""

    def prepare(self, model: nn.Module) -> None:
        """Change the case's own model in place, before anything is wrapped around it."""

    def computing(self) -> AbstractContextManager[Any]:
        """Around everything that the case computes."""
        return nullcontext()
