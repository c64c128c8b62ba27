"""Stand-ins for what takes seconds: a launch that writes rows without ranks, and worlds that end as a test says."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import ordered_cases
from harness.schema.rank_state import RankState, RankStatus, this_machine
from harness.schema.record import SCHEMA_VERSION
from harness.schema.run_dir import RunDir
from launch.patience import Ended, Limits
from launch.supervise import Start, Watch
from launch.task import Task
from launch.verdict import SUCCESS, Verdict
from launch.worlds import Starter
from tests.synthetic import steps, write_case

Outcomes = Callable[[BenchmarkConfig, Case], dict[str, Any]]
"""Columns of `cases` that differ from a finished case's, and `relative_l2`."""
DONE = Verdict(SUCCESS, complete=True)


def ordinary(config: BenchmarkConfig, case: Case) -> dict[str, Any]:
    """Outcomes of a run in which nothing fails."""
    return {}


@dataclass
class StandIn:
    """Replaces `run_launch`: writes the rows of a launch that no rank has run, and returns the next verdict."""

    outcomes: Outcomes = ordinary
    verdicts: Sequence[Verdict] = ()
    """Verdict of each launch, in turn; DONE for those after the last. Only a complete launch has rows."""
    launched: list[tuple[str, int]] = field(default_factory=list)
    """Name of the run, and number of the launch, in the order of the calls."""

    def __call__(self, config: BenchmarkConfig, run_dir: RunDir, task: Task, start: Starter, watch: Watch) -> Verdict:
        verdict = self.verdicts[len(self.launched)] if len(self.launched) < len(self.verdicts) else DONE
        self.launched.append((config.name, task.launch))
        if verdict.complete:
            write_launch(run_dir, config, task.launch, self.outcomes)
        return verdict


def write_launch(run_dir: RunDir, config: BenchmarkConfig, launch: int = 0, outcomes: Outcomes = ordinary) -> None:
    """Write the rows of every case of a launch, and environment.json."""
    ranks = [{"host": "here", "pid": str(rank), "device": "cpu", "device_name": "cpu"} for rank in range(config.world_size)]
    environment = {"schema_version": SCHEMA_VERSION, "world_size": config.world_size, "device": "cpu", "backend": "gloo"}
    run_dir.write_environment({**environment, "cores": 2, "ranks": ranks})
    for position, case in enumerate(ordered_cases(config, launch)):
        columns = {name: _constant(value) for name, value in outcomes(config, case).items()}
        seconds = steps(0.01, ranks=config.world_size)(case, launch)
        write_case(run_dir, config, case, launch, seconds, position=position, **columns)


def _constant(value: Any) -> Callable[[Case, int], Any]:
    return lambda case, launch: value


End = Callable[[RunDir], None]
"""Leaves in the run directory what one world leaves there."""


@dataclass
class Worlds:
    """Replaces `run_world`: each world leaves what the next of `ends` writes."""

    ends: Iterable[End]
    failed: dict[str, int] = field(default_factory=lambda: {"torchrun": 1})
    started: int = 0
    aside: list[dict[str, str]] = field(default_factory=list)
    """Quarantined cases and probes at the start of each world."""

    def __post_init__(self) -> None:
        self._ends = iter(self.ends)

    def __call__(
        self, starts: Sequence[Start], run_dir: RunDir, world: str, watch: Watch, limits: Limits, received: Sequence[str]
    ) -> Ended:
        self.started += 1
        self.aside.append(run_dir.ranks.aside())
        next(self._ends)(run_dir)
        well = all(status.ended == "done" for status in run_dir.ranks.statuses())
        return Ended(failed={} if well else self.failed)


def leave_state(run_dir: RunDir, rank: int, ended: str, **status: Any) -> None:
    """Write the record of a rank of this machine, as it is after its end; its process is gone."""
    own = RankStatus(rank=rank, pid=gone_pid(), host=socket.gethostname(), machine=this_machine())
    state = RankState(run_dir.ranks.state(rank), own)
    state.enter("forward")
    state.update(ended=ended, **status)


def gone_pid() -> int:
    """The pid of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def set_rank(environment: Any, rank: int, size: int) -> None:
    """Have this process pass for a rank of torchrun's; `environment` is pytest's monkeypatch."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}.items():
        environment.setenv(name, str(value))
    assert os.environ["RANK"] == str(rank)
