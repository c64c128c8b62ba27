"""Order in which failed ranks are listed: causes before consequences."""

import json
from collections.abc import Callable

import pytest

from harness.probes.control import Control
from harness.rank.agreement import CaseFailedError, together

LATE = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1000ms for recv operation to complete"
CLOSED = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242"
PAIR = "Application timeout caused pair closure"


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def said_alone(error: Exception) -> dict[str, object]:
    """Return the message of a rank whose work raises this error."""
    told: list[str] = []
    control = Control(None, 0, 1)
    control.all_gather_text = lambda text: told.append(text) or [text]  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(CaseFailedError):
        together(control, raising(error))
    own: dict[str, object] = json.loads(told[0])[0]
    return own


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (RuntimeError(LATE), RuntimeError(CLOSED)),
        (RuntimeError(LATE), RuntimeError(PAIR)),
        (RuntimeError(LATE), RuntimeError("Read error [::1]:4242: Connection reset by peer")),
        (TimeoutError("Read timed out. (read timeout=5)"), RuntimeError(LATE)),
        (ValueError("its own"), RuntimeError(CLOSED)),
        (ConnectionResetError("Connection reset by peer"), RuntimeError(LATE)),
    ],
)
def test_a_cause_comes_before_its_consequence_though_it_is_noted_later(first: Exception, second: Exception) -> None:
    consequence = said_alone(second)
    control = Control(None, 0, 1)
    control.all_gather_text = lambda text: [text, json.dumps([consequence, []])]  # type: ignore[method-assign]
    with pytest.raises(CaseFailedError) as failed:
        together(control, raising(first))
    assert str(failed.value).startswith(f"rank 0: {type(first).__name__}: {first}")
    waited = "; rank 1: waited meanwhile at test_agreement.py:"
    assert (waited if LATE not in str(second) else f"; rank 1: {type(second).__name__}: {second}") in str(failed.value)


def test_a_rank_that_was_freed_is_not_named_as_the_cause_whatever_it_raised() -> None:
    """The guard's thread had left its groups, as another rank had failed."""
    control = Control(None, 0, 1)

    def work() -> None:
        control.attempts.free(1)
        raise ValueError("of an aborted communicator")

    said: list[str] = []
    peer = json.dumps([{"at": 9.0, "words": ": MemoryError", "kind": 0, "where": ""}, []])
    control.all_gather_text = lambda text: said.append(text) or [text, peer]  # type: ignore[method-assign, func-returns-value]
    with pytest.raises(CaseFailedError) as failed:
        together(control, work)
    assert str(failed.value).startswith("rank 1: MemoryError; rank 0: waited meanwhile at test_agreement.py:")


def test_many_ranks_that_waited_are_counted() -> None:
    waited = json.dumps([{"at": 1.0, "words": f": {CLOSED}", "kind": 3, "where": ""}, []])
    control = Control(None, 0, 1)
    control.all_gather_text = lambda text: [text, *[waited] * 11]  # type: ignore[method-assign]
    with pytest.raises(CaseFailedError) as failed:
        together(control, raising(MemoryError()))
    assert str(failed.value).count("waited meanwhile") == 8
    assert str(failed.value).endswith("; and 3 ranks more")
