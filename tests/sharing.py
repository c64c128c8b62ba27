"""Two tests at a time: those that share a run or a world go to one worker; a test marked `alone` has the machine to itself."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

POOL = "worlds"
"""The fixture that is shared by world size: the parameter `ranks` of a test."""
USUAL_RANKS = 2
"""Most tests use a world of this size: each worker has one of its own, so that modules are free to go to either."""


def group_by_fixture(items: list[pytest.Item]) -> None:
    """Mark tests for `--dist loadgroup`: two tests that use one fixture of a module or the session run on one worker."""
    shared = [_shared(item) for item in items]
    groups: dict[str, str] = {}
    for names in shared:
        first = groups.get(names[0], names[0]) if names else ""
        joined = {groups.get(name, name) for name in names}
        groups |= dict.fromkeys((*names, *(known for known, group in groups.items() if group in joined)), first)
    for item, names in zip(items, shared, strict=True):
        if names:
            item.add_marker(pytest.mark.xdist_group(groups[names[0]]))


def _shared(item: pytest.Item) -> list[str]:
    """Return what a test shares with others; module and name of each fixture."""
    assert isinstance(item, pytest.Function)
    definitions = item._fixtureinfo.name2fixturedefs
    ours = [own[-1] for name, own in definitions.items() if own[-1].baseid and own[-1].scope in ("session", "module")]
    names = [f"{fixture.baseid}/{fixture.argname}" for fixture in ours if fixture.argname not in (POOL, "measure")]
    if POOL in definitions:
        ranks = item.callspec.params.get("ranks", USUAL_RANKS) if hasattr(item, "callspec") else USUAL_RANKS
        names.append(item.path.name if ranks == USUAL_RANKS else f"{ranks} ranks")
    return names


@contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Wait until this test may run beside the others that use `folder`; nothing runs beside a test that is alone.

    A waiting test keeps the first lock, so that later tests queue behind it.
    """
    with (folder / "queue.lock").open("w") as queue, (folder / "run.lock").open("w") as run:
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(run, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield
