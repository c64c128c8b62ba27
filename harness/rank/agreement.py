"""Ranks agree whether a piece of work went well: a case fails on all of them or on none."""

import traceback
from collections.abc import Callable
from typing import TypeVar

from harness.rank.control import Control

T = TypeVar("T")


class CaseFailedError(Exception):
    """A rank could not do its part of a case; raised on all ranks, with what each of them says."""


def together(control: Control, work: Callable[[], T]) -> T:
    """Do `work` on every rank; raises CaseFailedError on all ranks when it raised on one."""
    result, words = _attempt(work)
    said = {rank: text for rank, text in enumerate(control.all_gather_text(words)) if text}
    if said:
        raise CaseFailedError("; ".join(f"rank {rank}: {text}" for rank, text in said.items()))
    assert result is not None
    return result[0]


def _attempt(work: Callable[[], T]) -> tuple[tuple[T] | None, str]:
    try:
        return (work(),), ""
    except Exception as error:  # whatever a model, a strategy or the allocator raises: the case fails, the run goes on
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}".strip()
