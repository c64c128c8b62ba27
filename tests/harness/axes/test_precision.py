"""float32 is IEEE float32, or TF32 where it was asked for, whichever of torch's settings a user has touched before."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from harness.axes.precision.base import tf32
from harness.rank.settings import Settings

BACKENDS: Any = torch.backends
UNREADABLE = "unreadable"
NEWER = hasattr(torch.backends, "fp32_precision")


def set_precision(owner: Any, precision: str) -> Callable[[], None]:
    return lambda: setattr(owner, "fp32_precision", precision)


def older() -> None:
    BACKENDS.cuda.matmul.allow_tf32, BACKENDS.cudnn.allow_tf32 = True, False


USERS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "older": older,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
}
if NEWER:
    USERS |= {
        "matmul": set_precision(BACKENDS.cuda.matmul, "tf32"),
        "convolutions": set_precision(BACKENDS.cudnn.conv, "ieee"),
        "all": set_precision(BACKENDS, "tf32"),
    }


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = Settings.now()
    yield
    before.put_back()


def state() -> dict[str, Any]:
    """All precisions of float32 in torch; after some mixtures of the older and the newer settings torch refuses to read one."""
    cuda, cudnn, mkldnn = BACKENDS.cuda.matmul, BACKENDS.cudnn, BACKENDS.mkldnn
    reads: dict[str, Callable[[], Any]] = {
        "matmul_precision": torch.get_float32_matmul_precision,
        "matmul.allow_tf32": lambda: cuda.allow_tf32,
        "cudnn.allow_tf32": lambda: cudnn.allow_tf32,
    }
    if NEWER:
        owners = {"all": BACKENDS, "matmul": cuda, "conv": cudnn.conv, "rnn": cudnn.rnn, "mkldnn": mkldnn.matmul}
        reads |= {name: lambda owner=owner: owner.fp32_precision for name, owner in owners.items()}
    return {name: read(one) for name, one in reads.items()}


def read(one: Callable[[], Any]) -> Any:
    try:
        return one()
    except RuntimeError:
        return UNREADABLE


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("allow", [True, False])
def test_tf32_is_as_asked_and_every_setting_comes_back(user: str, allow: bool) -> None:
    USERS[user]()
    before = state()
    with tf32(allow):
        inside = state()
    assert state() == before
    assert UNREADABLE not in inside.values(), "torch.compile reads them all"
    assert inside["matmul_precision"] == ("high" if allow else "highest")
    assert inside["matmul.allow_tf32"] is inside["cudnn.allow_tf32"] is allow
    if NEWER:
        assert {inside[name] for name in ("matmul", "conv", "rnn", "mkldnn")} == {"tf32" if allow else "ieee"}


@pytest.mark.skipif(not NEWER, reason="torch 2.8 has the older settings only")
@pytest.mark.parametrize("first", ["none", "tf32"])
def test_what_inherits_its_precision_goes_on_to_do_so(first: str) -> None:
    """A user may change the precision of all backends after a case."""
    BACKENDS.fp32_precision = first
    BACKENDS.fp32_precision = "ieee"
    expected = state()
    BACKENDS.fp32_precision = first
    with tf32(False):
        pass
    BACKENDS.fp32_precision = "ieee"
    assert state() == expected
