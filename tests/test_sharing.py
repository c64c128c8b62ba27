"""Which tests run on one worker, and that xdist does as it is told."""

import pytest

from tests.worlds.pool import Pool


@pytest.fixture(scope="module")
def shared() -> object:
    return object()


@pytest.mark.parametrize("number", range(4))
def test_tests_that_share_a_fixture_are_one_group(shared: object, number: int, request: pytest.FixtureRequest) -> None:
    if hasattr(request.config, "workerinput"):
        assert "@" in request.node.nodeid


@pytest.mark.parametrize("ranks", [3])
def test_worlds_of_a_size_are_one_group(worlds: Pool, ranks: int, request: pytest.FixtureRequest) -> None:
    if hasattr(request.config, "workerinput"):
        assert "@" in request.node.nodeid
