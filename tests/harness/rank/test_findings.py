"""Sentences of findings say what was found, also where nothing has a name."""

import math

import pytest

from harness.rank.findings import _coupling, furthest_from_reference
from harness.schema.record import METRICS, REFERENCE, Discrepancy


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


def test_a_finding_states_the_distance_of_the_furthest_rank() -> None:
    """Under aggregation=local each rank has a gradient and a reference of its own."""

    def row(rank: int, distance: float, parameter: str = "") -> Discrepancy:
        values = dict.fromkeys(METRICS, 0.0) | {"relative_l2": distance}
        return Discrepancy.of("case", rank, REFERENCE, parameter, tuple(values.values()))

    assert furthest_from_reference([row(0, 1e-8), row(0, 0.5, "weight"), row(1, 3e-8)]) == 3e-8
    for ranks in ((0, 1), (1, 0)):
        assert furthest_from_reference([row(ranks[0], 1e-8), row(ranks[1], math.nan)]) == math.inf
