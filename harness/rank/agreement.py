"""Ranks agree whether a piece of work went well: a case fails on all of them or on none."""

import contextlib
import traceback
from collections.abc import Callable
from typing import TypeVar

from harness.rank.control import Control, PeerFailedError

T = TypeVar("T")


class CaseFailedError(Exception):
    """A rank could not do its part of a case; raised on all ranks, with what each of them says."""


def together(control: Control, work: Callable[[], T]) -> T:
    """Do `work` on every rank; raises CaseFailedError on all ranks when it raised on one.

    Inside `work` every other collective of the control group follows a `control.meet()` or `control.any()` with nothing between
    that could fail: a rank that fails meets the others where they meet next, and none is left waiting for it.
    """
    result, words = _attempt(control, work)
    said = {rank: text for rank, text in enumerate(control.all_gather_text(words)) if text}
    if said:
        raise CaseFailedError("; ".join(f"rank {rank}: {text}" for rank, text in said.items()))
    assert result is not None
    return result[0]


def _attempt(control: Control, work: Callable[[], T]) -> tuple[tuple[T] | None, str]:
    try:
        result = work()
        control.meet()
        return (result,), ""
    except PeerFailedError:
        return None, ""
    except Exception as error:  # whatever a model, a strategy or the allocator raises: the case fails, the run goes on
        traceback.print_exc()
        with contextlib.suppress(PeerFailedError):
            control.meet(failed=True)
        return None, f"{type(error).__name__}: {error}".strip()
