"""Settings of torch under which a step is repeated."""

import pytest
import torch

from harness.probes.repeatability import _deterministic, _held


def test_a_setting_holds_for_a_while_and_is_taken_back_also_after_an_error() -> None:
    state = ["before"]

    def write(value: str) -> None:
        state[:] = [value]

    with _held(lambda: state[0], write, "meanwhile"):
        assert state == ["meanwhile"]
    assert state == ["before"]
    with pytest.raises(RuntimeError, match="planted"), _held(lambda: state[0], write, "meanwhile"):
        raise RuntimeError("planted")
    assert state == ["before"]


def test_deterministic_algorithms_are_off_again() -> None:
    with _deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
