"""Sentences of findings say what was found, also where nothing has a name."""

import pytest

from harness.rank.findings import _coupling


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("BatchNorm",), "m has BatchNorm: each rank normalizes by its own shard's statistics, which is another function"),
        (("BatchNorm", "dropout"), "m has BatchNorm and dropout: each rank normalizes by its own shard's statistics and each"),
        ((), "samples of m influence each other, and no module of it is a BatchNorm or a dropout"),
    ],
)
def test_a_coupling_is_named_or_looked_for(kinds: tuple[str, ...], words: str) -> None:
    """Functional dropout and random numbers in forward belong to no module."""
    said = _coupling("m", kinds, 0.35)
    assert said.startswith(words)
    assert "their exact gradients are 3.5e-01 apart" in said
    assert " : " not in said and " has :" not in said
