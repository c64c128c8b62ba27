"""An A/B run: two configurations whose launches alternate, so that the drift of the machine falls on both alike."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.schema.case import AXES
from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Slurm, TorchrunNodes
from harness.schema.matrix import expand_cases
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import message_lines
from launch.compose import compose_request
from launch.host import check_host
from launch.job import asked, kept, launch_once, plan, settle, total, unless_launches_remain
from launch.progress import ProgressLine
from launch.resume import is_resume
from launch.task import Task
from launch.verdict import Verdict

LAUNCHES = 5
"""Of each side, unless `launches` says otherwise: fewer can hardly show a difference."""
SIDES = ("base", "new")


def configure_sides(
    overrides: Sequence[str], base: Sequence[str], new: Sequence[str], config_dir: str | None, flags: Mapping[str, Any]
) -> tuple[list[BenchmarkConfig], bool]:
    """Return two configurations, whose runs go to <name>-base and <name>-new, and True for a dry run.

    Raises RefusedError.
    """
    if is_resume([*overrides, *base, *new], flags):
        raise RefusedError("--resume: continues one run, and an A/B run starts two; try one of them")
    common = [f"launches={LAUNCHES}", *overrides] if not _says_launches(overrides) else list(overrides)
    requests = [compose_request([*common, *own], flags, config_dir=config_dir) for own in (base, new)]
    if any(request.arguments.resume for request in requests):
        raise RefusedError("--resume: continues one run, and an A/B run starts two; try one of them")
    configs = [settle(request.config) for request in requests]
    if any(isinstance(config.launcher, Slurm) for config in configs):
        raise RefusedError("launch=slurm starts one run; an A/B run alternates two: start it inside a job")
    if any(isinstance(config.launcher, TorchrunNodes) and not config.launcher.hosts for config in configs):
        raise RefusedError("an A/B run starts its hosts again and again: say which by launch.hosts=[...]")
    if any(request.arguments.nccl_matrix.asked for request in requests):
        raise RefusedError("nccl_matrix makes a run of each combination; an A/B run has two sides: use +env.NCCL_ALGO=RING")
    if any(request.arguments.world_sizes for request in requests):
        raise RefusedError("world_sizes makes a run of each size; an A/B run has two sides")
    try:
        named = [replace(config, name=f"{config.name}-{side}") for config, side in zip(configs, SIDES, strict=True)]
    except ValueError as error:  # too long a name
        raise RefusedError(str(error)) from error
    return named, any(request.arguments.dry_run for request in requests)


def compare_arguments(configs: Sequence[BenchmarkConfig], gates: Sequence[str]) -> list[str]:
    """How the report is to hold the sides against each other. Raises RefusedError for what it would refuse after measuring."""
    if gates:
        from harness.report.gates import parse_gate  # pandas: only where it is needed

        for gate in gates:
            parse_gate(gate)
    axis = _axis_apart(*configs)
    return [*(["--across", axis] if axis else []), *(part for gate in gates for part in ("--gate", gate))]


def _axis_apart(base: BenchmarkConfig, new: BenchmarkConfig) -> str:
    """The axis on which alone the sides' cases differ; empty where they have cases in common. Raises RefusedError."""
    if (base.order, base.rounds) != (new.order, new.rounds):
        raise RefusedError("--base and --new: order and rounds change times, and must be the same on both sides")
    for axis in ("", *AXES):
        ours, theirs = _cases(base, axis), _cases(new, axis)
        if [case for case in ours if case in theirs] != [case for case in theirs if case in ours]:
            raise RefusedError("--base and --new list their common cases in unlike orders, which changes times")
        if set(ours) & set(theirs) and (not axis or len({*getattr(base, axis)}) == len({*getattr(new, axis)}) == 1):
            return axis
    raise RefusedError("--base and --new have no case in common, and differ on several axes or in several options of one")


def _cases(config: BenchmarkConfig, apart: str) -> list[str]:
    """Every case but for what it has of the axis `apart`."""
    return [case.key([axis for axis in AXES if axis != apart]) for case in expand_cases(config)]


def run_sides(configs: Sequence[BenchmarkConfig]) -> tuple[Verdict, list[RunDir]]:
    """Both runs; after a launch that did not go well there is no next. Raises RefusedError when there is nowhere to write."""
    check_host(configs[0])
    now = datetime.datetime.now()
    run_dirs = _create(configs, now)
    for config, run_dir, side in zip(configs, run_dirs, SIDES, strict=True):
        print(message_lines(f"{side}, {config.launches} times:\n{plan(config, run_dir, Task())}"), flush=True)
    base, new = run_dirs
    with base.occupied(), new.occupied(), ProgressLine(sum(map(total, configs))) as line:
        verdict = _alternate(configs, run_dirs, line)
    for run_dir in run_dirs:
        run_dir.remove_scratch()
    return verdict, [run_dir for run_dir in run_dirs if kept(run_dir, verdict)]


def _create(configs: Sequence[BenchmarkConfig], now: datetime.datetime) -> list[RunDir]:
    made = list[RunDir]()
    try:
        for config in configs:
            made.append(RunDir.create(config, now))
    except RefusedError:
        for run_dir in made:
            run_dir.discard()
        raise
    return made


def turns(launches: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(side, launch) in order: base new, new base, base new ...: neither side is always first."""
    for number in range(max(launches)):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            if number < launches[side]:
                yield side, number


def _alternate(configs: Sequence[BenchmarkConfig], run_dirs: Sequence[RunDir], line: ProgressLine) -> Verdict:
    done, order = 0, list(turns([config.launches for config in configs]))
    left = len(order)
    for side, number in order:
        left -= 1
        verdict = launch_once(configs[side], run_dirs[side], number, line, done)
        if verdict.stopped or not verdict.complete:
            break
        done += asked(configs[side], number)
    return unless_launches_remain(verdict, left)


def _says_launches(overrides: Sequence[str]) -> bool:
    return any(override.split("=")[0].lstrip("+") == "launches" for override in overrides)
