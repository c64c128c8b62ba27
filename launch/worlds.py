"""A launch of a run, world after world: one that died is started again for what remains."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from secrets import token_hex

from harness.schema.config import BenchmarkConfig
from harness.schema.progress import read_progress
from harness.schema.run_dir import RunDir
from harness.schema.text import plain
from launch.deaths import Death, deaths
from launch.patience import Limits
from launch.signals import signals_noted
from launch.supervise import Start, Watch, run_world, settle
from launch.task import Task
from launch.verdict import FAILURE, Verdict, judge

Starter = Callable[[BenchmarkConfig, RunDir, Task], list[Start]]
"""What brings up the ranks of a world."""
_TWICE = 2
_START_S = 30.0
"""For torchrun and the interpreter, before a rank can report at all."""


def run_launch(config: BenchmarkConfig, run_dir: RunDir, task: Task, start: Starter, watch: Watch) -> Verdict:
    """One launch to its end. A world that died on the way is told at once, stands in failures.json, and makes the status 1."""
    with signals_noted() as received:
        return _run_worlds(config, run_dir, task, start, watch, received)


def _run_worlds(
    config: BenchmarkConfig, run_dir: RunDir, task: Task, start: Starter, watch: Watch, received: Sequence[str]
) -> Verdict:
    killed, aside, vain = Counter[str](), dict[str, str](), 0
    before = len(read_progress(run_dir, config, task.launch).unfinished)
    run_dir.ranks.set_aside(aside)
    while True:
        dumps = set(run_dir.ranks.flight_dumps())
        verdict, culprits = _run_world(config, run_dir, replace(task, world=task.world or token_hex(4)), start, watch, received)
        if culprits and not verdict.stopped:
            killed.update([_work(culprits)])
            note(run_dir, task, culprits)
            _name_dumps(run_dir, dumps)
        if verdict.complete or verdict.stopped or not culprits:
            break
        vain = 0 if verdict.unfinished < before else vain + 1
        before = verdict.unfinished
        if max(vain, 1) > config.restarts or not _may_go_on(culprits, vain):
            break
        _tell(culprits)
        aside |= {name: _reason(name, culprits) for name, times in killed.items() if name not in aside and times >= _TWICE}
        run_dir.ranks.set_aside(aside)
        task = replace(task, world="")
    return replace(verdict, status=max(verdict.status, FAILURE)) if killed else verdict


def _tell(culprits: Sequence[Death]) -> None:
    for culprit in culprits:
        print(f"reducebench: {plain(str(culprit))}", file=sys.stderr)
    print("reducebench: the world is started again for what remains", file=sys.stderr, flush=True)


def _name_dumps(run_dir: RunDir, before: Collection[Path]) -> None:
    """Name the files that torch's flight recorder has written since, and what shows them."""
    prefixes = dict.fromkeys(path.name.rstrip("0123456789") for path in run_dir.ranks.flight_dumps() if path not in before)
    for prefix in prefixes:
        command = f"torchfrtrace --prefix {prefix} {shlex.quote(str(run_dir.ranks.path))}"
        print(
            f"reducebench: torch's flight recorder has written {plain(str(run_dir.ranks.path / prefix))}*: the last "
            f"collectives of the ranks; they are pickles: open only those of your own runs, with {plain(command)}",
            file=sys.stderr,
            flush=True,
        )


def _run_world(
    config: BenchmarkConfig, run_dir: RunDir, task: Task, start: Starter, watch: Watch, received: Sequence[str]
) -> tuple[Verdict, Sequence[Death]]:
    run_dir.ranks.forget()
    limits = Limits(config.world_size, config.rendezvous_s + _START_S, config.deadline_s)
    ended = run_world(start(config, run_dir, task), run_dir, task.world, watch, limits, received)
    settle(run_dir, ended)
    ended.signal = received[0] if received else ""
    culprits = deaths(run_dir, ended.failed)
    return judge(run_dir, ended, culprits, task.launch), culprits


def _work(culprits: Sequence[Death]) -> str:
    """The case, or the probe, in which the world died; empty outside of any."""
    return next((culprit.case for culprit in culprits if culprit.case), "")


def _may_go_on(culprits: Sequence[Death], vain: int) -> bool:
    """A full disk stays full; and a world that dies before its first case, with nothing done, would do so again."""
    return not any(culprit.unwritable for culprit in culprits) and (not vain or bool(_work(culprits)))


def _reason(name: str, culprits: Sequence[Death]) -> str:
    mine = [str(culprit) for culprit in culprits if culprit.case == name]
    return f"the world died in it twice{': ' + '; '.join(mine) if mine else ''}"


def note(run_dir: RunDir, task: Task, culprits: Sequence[Death]) -> None:
    """Keep for the report who ended a world; where the disk is full, the terminal alone is told."""
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    with suppress(OSError):
        run_dir.note_failure({"at": at, "launch": task.launch, "culprits": [culprit.record for culprit in culprits]})
