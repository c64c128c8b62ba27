"""Refusals by ranks, in a world of the pool: one costs no new world."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.rank.process_group import World
from harness.rank.session import Order, Session
from harness.schema.rank_state import RankState, RankStatus, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from tests.worlds.session import measure


def refusals(world: World, runs: list[list[str]]) -> list[list[str]]:
    """Run each list of overrides; return its refusal on every rank, empty where it was measured."""
    return [_everywhere(world, partial(measure, world, overrides)) for overrides in runs]


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
