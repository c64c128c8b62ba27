"""Ranks agree whether a piece of work went well: a case fails on all of them or on none."""

import contextlib
import errno
import json
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from harness.probes.control import Control, PeerFailedError
from harness.rank.settings import Settings

T = TypeVar("T")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""What makes a file system refuse to be written to."""


class CaseFailedError(Exception):
    """A rank could not do its part of a case; raised on all ranks, with what each of them says, the first to fail first."""


def together(control: Control, work: Callable[[], T]) -> T:
    """Do `work` on every rank; raises CaseFailedError on all ranks when it raised on one.

    Settings of the process are as before afterwards; `control.changed` says which of them the work had changed, and where.

    Inside `work` every other collective of the control group follows a `control.meet()` or `control.any()` with nothing between
    that could fail: a rank that fails meets the others where they meet next, and none is left waiting for it.
    """
    result, error, failed_at, changed = _attempt(control, work)
    own = {"at": failed_at, "words": _words(control, error, changed)} if error else {}
    everyone = enumerate(control.all_gather_text(json.dumps([own, changed])))
    said = {rank: _noted(control, rank, *json.loads(text)) for rank, text in everyone}
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        raise error  # no other case could be written either
    failed = sorted((rank for rank in said if said[rank]), key=lambda rank: float(said[rank]["at"]))
    if failed:
        raise CaseFailedError("; ".join(f"rank {rank}{said[rank]['words']}" for rank in failed))
    assert result is not None
    return result[0]


def _noted(control: Control, rank: int, said: dict[str, Any], changed: list[str]) -> dict[str, Any]:
    """Note what a rank changed, and return what it says of a failure."""
    for setting in changed:
        ranks = control.changed.setdefault(setting, [])
        ranks += [rank] * (rank not in ranks)
    return said


def _words(control: Control, error: Exception, changed: list[str]) -> str:
    where, too = control.where(), f" (it had changed {', '.join(changed)})" if changed else ""
    return f"{where and ' '}{where}: {type(error).__name__}: {error}".rstrip() + too


def _attempt(control: Control, work: Callable[[], T]) -> tuple[tuple[T] | None, Exception | None, float, list[str]]:
    """What came of it; or what went wrong on this rank, and when; and the settings that it changed."""
    before, changed = Settings.now(), list[str]()
    try:
        try:
            result = work()
        finally:
            changed += before.put_back()  # the control group's own tensors depend on them, too
        control.meet()
        return (result,), None, 0.0, changed
    except PeerFailedError:
        return None, None, 0.0, changed
    except Exception as error:  # whatever a model, a strategy or the allocator raises: the case fails, the run goes on
        failed_at = time.time()
        with contextlib.suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        with contextlib.suppress(PeerFailedError):
            control.meet(failed=True)
        return None, error, failed_at, changed
