"""Ranks agree whether a piece of work went well: a case fails on all of them or on none."""

import contextlib
import errno
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from harness.probes.control import Control, PeerFailedError
from harness.rank.settings import restored
from harness.rank.whereabouts import place_of, timed_out, was_closed

T = TypeVar("T")
_NAMED = 8
"""Ranks that are listed as waiting."""
_OWN, _LATE_OF_THE_USER, _LATE_OF_THE_HARNESS, _CLOSED = range(4)
"""Kinds of failures: of a rank itself, collectives that were given up, and connections that a rank which gave up has closed."""
_LATE = (_LATE_OF_THE_USER, _LATE_OF_THE_HARNESS)


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
    result, failure, changed = _attempt(control, work)
    error = failure.error if failure else None
    own: dict[str, Any] = {"where": control.where()}
    if failure:
        words, kind = _words(control, failure.error, changed), _kind(failure)
        own |= {"at": failure.at, "words": words, "kind": kind, "place": _place(failure.error)}
    everyone = enumerate(control.all_gather_text(json.dumps([own, changed])))
    said = {rank: _noted(control, rank, *json.loads(text)) for rank, text in everyone}
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        raise error  # no other case could be written either
    failed = sorted((rank for rank in said if "at" in said[rank]), key=lambda rank: (said[rank]["kind"], said[rank]["at"]))
    if failed:
        raise CaseFailedError("; ".join(_reason(said, failed)))
    assert result is not None
    return result[0]


def _reason(said: dict[int, dict[str, Any]], failed: list[int]) -> list[str]:
    """Name the ranks that failed by themselves, with their errors, then those that waited for them."""
    causes = [rank for rank in failed if said[rank]["kind"] != _CLOSED] or failed
    gave_up = any(said[rank]["kind"] in _LATE for rank in causes)
    waited = [rank for rank in said if rank not in causes and (gave_up or rank in failed)]
    return [*(f"rank {rank}{said[rank]['words']}" for rank in causes), *_waited(said, waited)]


def _noted(control: Control, rank: int, said: dict[str, Any], changed: list[str]) -> dict[str, Any]:
    """Note what a rank changed, and return what it says of a failure."""
    for setting in changed:
        ranks = control.changed.setdefault(setting, [])
        ranks += [rank] * (rank not in ranks)
    return said


def _kind(failure: "_Failure") -> int:
    """Order in which ranks are listed: errors before their consequences on other ranks."""
    error = failure.error
    if failure.freed or was_closed(error):
        return _CLOSED
    if timed_out(error):
        return _LATE_OF_THE_USER if str(place_of(error)) else _LATE_OF_THE_HARNESS
    return _OWN


def _waited(said: dict[int, dict[str, Any]], ranks: list[int]) -> list[str]:
    """Name the ranks that waited for those that failed, and where they were."""
    named = []
    for rank in ranks[:_NAMED]:
        named.append(f"rank {rank}{_placed(said[rank]['where'])}: waited meanwhile{said[rank].get('place', '')}")
    return [*named, *([f"and {len(ranks) - _NAMED} ranks more"] if len(ranks) > _NAMED else [])]


def _place(error: Exception) -> str:
    place = place_of(error)
    return f" {'in' if place.collective else 'at'} {place}" if place.line else ""


def _words(control: Control, error: Exception, changed: list[str]) -> str:
    too = f" (it had changed {', '.join(changed)})" if changed else ""
    return f"{_placed(control.where())}: {describe(error)}{too}"


def _placed(where: str) -> str:
    return f"{where and ' '}{where}"


def describe(error: Exception) -> str:
    """Its type and message; and where it was raised, if that was in the user's own code."""
    place = str(place_of(error))
    return f"{type(error).__name__}: {error}".rstrip() + (f" (in {place})" if place else "")


@dataclass(frozen=True)
class _Failure:
    """Error of this rank's part of the work."""

    error: Exception
    at: float
    freed: bool
    """True where the error is what came of leaving the groups, as another rank had failed."""


def _attempt(control: Control, work: Callable[[], T]) -> tuple[tuple[T] | None, _Failure | None, list[str]]:
    """Return the result, or the failure of this rank; and the settings that the work changed."""
    changed = list[str]()
    with control.attempts.next():
        try:
            with restored(changed):  # the control group's own tensors depend on them, too
                result = work()
            control.meet()
            return (result,), None, changed
        except PeerFailedError:
            return None, None, changed
        except Exception as error:  # whatever a model, a strategy or the allocator raises: the case fails, the run goes on
            return None, _fail(control, error), changed


def _fail(control: Control, error: Exception) -> _Failure:
    """Free the ranks that wait for this one in a measured group, then wait for them in the control group."""
    failed_at = time.time()
    freed = not control.attempts.fail()
    with contextlib.suppress(OSError):  # the log may be on the disk that is full
        traceback.print_exc()
    with contextlib.suppress(PeerFailedError):
        control.meet(failed=True)
    return _Failure(error, failed_at, freed)
