"""A whole run in a world that is up already, every launch of it: from the overrides to the last row.

Of what `python -m harness.rank` does, there is no guard, no rendezvous, and no comparison of versions. Tests of processes have
these.
"""

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import torch

from harness.rank.__main__ import redirect_output
from harness.rank.environment.watch import Watch
from harness.rank.preflight import check_sum
from harness.rank.process_group import World
from harness.rank.session import Order, Session, silent
from harness.schema.config import BenchmarkConfig
from harness.schema.rank_state import RankState, RankStatus, this_machine
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.__main__ import parse
from launch.compose import compose_config
from launch.job import check


def measure(world: World, overrides: list[str]) -> str:
    """Run the matrix that the overrides ask for; return the path of the run directory."""
    path, refusal = json.loads(world.control.all_gather_text(json.dumps(_made(world, overrides)))[0])
    if refusal:
        raise RefusedError(refusal)
    run_dir = RunDir.open(path)
    config = run_dir.config()
    status = RankStatus(rank=world.rank, pid=os.getpid(), host=socket.gethostname(), machine=this_machine())
    state = RankState(run_dir.ranks.state(world.rank), status)
    with _log(run_dir, world.rank), _of_the_run(config), _world(world, config, state) as own:
        check_sum(own)
        for launch in range(config.launches):
            watch = Watch(own, launch)
            Session.open(run_dir, own, state, config, Order(launch)).run(silent)
            watch.note(run_dir)
        own.control.meet()
        if own.rank == 0:
            run_dir.remove_scratch()
    state.update(ended="done")
    return str(run_dir.path)


def _made(world: World, overrides: list[str]) -> tuple[str, str]:
    """Make the run directory on rank 0; return its path and why there is none."""
    if world.rank:
        return "", ""
    try:
        parsed = parse(overrides)
        config = compose_config(parsed.overrides, config_dir=parsed.config_dir, nproc_per_node=world.size)
        check(config, world.size)
        return str(RunDir.create(config, datetime.now()).path), ""
    except RefusedError as error:
        return "", str(error)


@contextmanager
def _log(run_dir: RunDir, rank: int) -> Iterator[None]:
    """Print to the run's log, and afterwards to the pool's again."""
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    redirect_output(run_dir.ranks.log(rank))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for own, descriptor in zip(kept, (1, 2), strict=True):
            os.dup2(own, descriptor)
            os.close(own)


@contextmanager
def _world(world: World, config: BenchmarkConfig, state: RankState) -> Iterator[World]:
    """Give the run a measured group with its own deadline, as a world that is started for it has."""
    where = world.control.where
    own = replace(world, deadline_s=config.deadline_s)
    own.rebuild_measured()
    own.control.where = lambda: f"on {state.status.host}, in phase {state.phase}"
    try:
        yield own
    except RefusedError:  # by all ranks; after any other error the pool replaces the world
        _take_back(world, own, where)
        raise
    _take_back(world, own, where)


def _take_back(world: World, own: World, where: Callable[[], str]) -> None:
    """Give the world a measured group with its own deadline again; all ranks call alike."""
    own.control.where = where
    world.measured = own.measured
    world.rebuild_measured()


@contextmanager
def _of_the_run(config: BenchmarkConfig) -> Iterator[None]:
    """Set threads and environment variables, and import the user's own modules, for this run alone."""
    path = [config.config_dir, *sys.path] if config.config_dir else sys.path
    before, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(config.threads_per_rank)
    try:
        with patch.dict(os.environ, config.env), patch.object(sys, "path", path):
            yield
    finally:
        torch.set_num_threads(threads)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if config.config_dir and file and Path(file).is_relative_to(config.config_dir):
                del sys.modules[name]
