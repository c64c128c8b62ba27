"""Ranks agree whether a piece of work went well: a case fails on all of them or on none."""

import contextlib
import errno
import json
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

from harness.probes.control import Control, PeerFailedError

T = TypeVar("T")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""What makes a file system refuse to be written to."""


class CaseFailedError(Exception):
    """A rank could not do its part of a case; raised on all ranks, with what each of them says, the first to fail first."""


def together(control: Control, work: Callable[[], T]) -> T:
    """Do `work` on every rank; raises CaseFailedError on all ranks when it raised on one.

    Inside `work` every other collective of the control group follows a `control.meet()` or `control.any()` with nothing between
    that could fail: a rank that fails meets the others where they meet next, and none is left waiting for it.
    """
    result, error, failed_at = _attempt(control, work)
    own = {"at": failed_at, "words": _words(control, error)} if error else {}
    said = {rank: json.loads(text) for rank, text in enumerate(control.all_gather_text(json.dumps(own)))}
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        raise error  # no other case could be written either
    failed = sorted((rank for rank in said if said[rank]), key=lambda rank: float(said[rank]["at"]))
    if failed:
        raise CaseFailedError("; ".join(f"rank {rank}{said[rank]['words']}" for rank in failed))
    assert result is not None
    return result[0]


def _words(control: Control, error: Exception) -> str:
    where = control.where()
    return f"{where and ' '}{where}: {type(error).__name__}: {error}".rstrip()


def _attempt(control: Control, work: Callable[[], T]) -> tuple[tuple[T] | None, Exception | None, float]:
    """What came of it; or what went wrong on this rank, and when."""
    try:
        result = work()
        control.meet()
        return (result,), None, 0.0
    except PeerFailedError:
        return None, None, 0.0
    except Exception as error:  # whatever a model, a strategy or the allocator raises: the case fails, the run goes on
        failed_at = time.time()
        with contextlib.suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        with contextlib.suppress(PeerFailedError):
            control.meet(failed=True)
        return None, error, failed_at
