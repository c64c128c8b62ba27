"""Refusals by ranks, in a world of the pool: one costs no new world."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.rank.process_group import World
from harness.rank.session import Order, Session
from harness.schema.rank_state import RankState, RankStatus, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from tests.worlds.session import measure


def refusals(world: World, runs: list[list[str]]) -> list[list[str]]:
    """Run each list of overrides; return its refusal on every rank, empty where it was measured."""
    return [_refused(world, overrides) for overrides in runs]


def _refused(world: World, overrides: list[str]) -> list[str]:
    with _modules_of(overrides):
        return _everywhere(world, lambda: measure(world, overrides))


def resume_refusal(world: World, path: str) -> list[str]:
    """Begin to resume the run in `path`; return the refusal on every rank, empty where the run could be resumed."""
    run_dir = RunDir.open(Path(path))
    config = run_dir.config()
    status = RankStatus(rank=world.rank, pid=0, host="", machine=this_machine())
    state = RankState(run_dir.ranks.state(world.rank), status)
    own = replace(world, deadline_s=config.deadline_s, _subgroups={})
    return _everywhere(world, lambda: Session.open(run_dir, own, state, config, Order(retry=True)))


def _everywhere(world: World, call: Callable[[], object]) -> list[str]:
    said = ""
    try:
        call()
    except RefusedError as error:
        said = str(error)
    return world.control.all_gather_text(said)


@contextmanager
def _modules_of(overrides: list[str]) -> Iterator[None]:
    """Drop the modules of the run's --config-dir afterwards: the next run may bring others of the same names."""
    before = set(sys.modules)
    yield
    if "--config-dir" in overrides:
        folder = overrides[overrides.index("--config-dir") + 1]
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
                del sys.modules[name]
