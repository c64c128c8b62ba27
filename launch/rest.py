"""Rests between two looks at a world."""

import time
from collections.abc import Sequence

POLL_S = 0.2


def rest(seconds: float, received: Sequence[str], known: int = 0) -> None:
    """Sleep so long, or until more signals than the `known` ones have been received."""
    until = time.monotonic() + seconds
    while len(received) <= known and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, POLL_S))
