"""Clocks of different hosts: estimated over the control group, never further off than is said."""

import pytest

from tests.worlds.pool import Pool

AHEAD_S = 0.5


@pytest.mark.parametrize("ranks", [3])
def test_the_offset_of_another_host_is_as_far_off_as_is_said_at_most(ranks: int, worlds: Pool) -> None:
    found = worlds.run(ranks, "tests.worlds.clocks:offsets", AHEAD_S)
    assert found["shared"] is True, "three ranks of this host"
    first, second, third = found["offsets"]
    assert first == [0, 0]
    assert second == third, "ranks of one host have one offset"
    ahead, uncertainty = second
    assert 0 < uncertainty < AHEAD_S
    assert abs(ahead - AHEAD_S) <= uncertainty
    assert found["largest"] == pytest.approx(uncertainty + 0.25), "the drift that one rank has seen, and what it did not know"
