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
    assert f"; rank 1: {type(second).__name__}: {second}" in str(failed.value)
