"""Tests that share something run on one worker, and a test marked `alone` has the machine to itself."""

import threading
from pathlib import Path

import pytest

from tests.sharing import turn
from tests.worlds.pool import Pool


@pytest.fixture(scope="module")
def shared() -> object:
    return object()


@pytest.fixture(scope="module")
def joined(shared: object) -> object:
    return object()


def _group(item: pytest.Item) -> str:
    mark = item.get_closest_marker("xdist_group")
    group = str(mark.args[0]) if mark else ""
    if group and hasattr(item.config, "workerinput"):
        assert item.nodeid.endswith(f"@{group}"), "xdist does as it is told"
    return group


def _groups(request: pytest.FixtureRequest, name: str) -> set[str]:
    """Return the groups of the tests of this module whose name begins so."""
    if not request.config.pluginmanager.hasplugin("xdist"):
        pytest.skip("without xdist there are no groups")
    items = [item for item in request.session.items if item.path == request.path and item.name.startswith(name)]
    return {_group(item) for item in items}


@pytest.mark.parametrize("number", range(3))
def test_one_fixture_is_one_group(shared: object, number: int, request: pytest.FixtureRequest) -> None:
    assert len(_groups(request, "test_one_fixture")) == 1
    assert "" not in _groups(request, "test_one_fixture")


def test_a_fixture_joins_the_groups_of_those_that_it_uses(joined: object, request: pytest.FixtureRequest) -> None:
    assert len(_groups(request, "test_")) == 3, "one fixture or the other, a world of three ranks, and none"
    assert _groups(request, "test_a_fixture") == _groups(request, "test_one_fixture")


def test_what_shares_nothing_is_free(request: pytest.FixtureRequest) -> None:
    assert _groups(request, "test_what_shares_nothing") == {""}


@pytest.mark.parametrize("ranks", [3])
def test_worlds_of_a_size_are_one_group(ranks: int, request: pytest.FixtureRequest, worlds: Pool) -> None:
    others = [
        item for item in request.session.items if getattr(item, "callspec", None) and item.callspec.params.get("ranks") == 3
    ]
    if request.config.pluginmanager.hasplugin("xdist"):
        assert len({_group(item) for item in others if "worlds" in item.fixturenames}) == 1


def test_nothing_runs_beside_a_test_that_is_alone(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def alone() -> None:
        with turn(tmp_path, alone=True):
            entered.set()
            leave.wait()

    with turn(tmp_path, alone=False), turn(tmp_path, alone=False):
        waiting = threading.Thread(target=alone)
        waiting.start()
        assert not entered.wait(0.2), "two tests are running"
    assert entered.wait()
    beside = threading.Thread(target=lambda: turn(tmp_path, alone=False).__enter__())
    beside.start()
    beside.join(0.2)
    assert beside.is_alive(), "the one that is alone runs"
    leave.set()
    waiting.join()
    beside.join()
