"""One run: from a checked configuration to its report."""

import datetime
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.matrix import expected_files
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch import torchrun
from launch.compose import compose_config
from launch.devices import check_ranks, default_ranks
from launch.progress import ProgressLine
from launch.supervise import run_ranks
from launch.targets import check_targets
from launch.verdict import FAILURE, SUCCESS, Verdict, judge


def configure(overrides: list[str], config_dir: str | None) -> BenchmarkConfig:
    """Everything that can be refused before a rank starts is refused here, by RefusedError."""
    return settle(compose_config(overrides, config_dir=config_dir))


def settle(config: BenchmarkConfig) -> BenchmarkConfig:
    """The configuration with a number of ranks, checked against this host. Raises RefusedError."""
    if config.torchrun.nnodes > 1:
        raise RefusedError(
            f"torchrun.nnodes={config.torchrun.nnodes}: on several nodes start the ranks with torchrun -m harness"
        )
    ranks = config.torchrun.nproc_per_node or default_ranks(config.device)
    try:
        config = replace(config, torchrun=replace(config.torchrun, nproc_per_node=ranks))
    except ValueError as error:  # too many ranks for what else is asked for
        raise RefusedError(str(error)) from error
    check(config, ranks)
    return config


def check(config: BenchmarkConfig, ranks: int) -> None:
    """What the configuration alone does not tell: the user's classes, and the devices of this host."""
    own = [config.config_dir] if config.config_dir else []
    check_targets(config, [*own, str(Path.cwd())])
    check_ranks(config, ranks)


def launch(config: BenchmarkConfig) -> tuple[Verdict, RunDir | None]:
    """Make the run directory, run the ranks, and judge. Raises RefusedError when the directory cannot be made."""
    expected = expected_files(config)
    what = counted(expected) + (f", {config.launches} times" if config.launches > 1 else "")
    if config.dry_run:
        print(f"would run {what}: {shlex.join(torchrun.command(config, RunDir('RUN_DIR')))}")
        return Verdict(SUCCESS), None
    run_dir = RunDir.create(config, datetime.datetime.now())
    command = shlex.join(torchrun.command(config, run_dir))
    print(f"{what}, on {config.torchrun.nproc_per_node} ranks:\n$ {command}", flush=True)
    with ProgressLine(total(config)) as line:
        verdict = _launch_all(config, run_dir, line)
    run_dir.remove_scratch()
    return verdict, run_dir


def _launch_all(config: BenchmarkConfig, run_dir: RunDir, line: ProgressLine) -> Verdict:
    """One world after the other; after one that did not go well there is no next."""
    for number in range(config.launches):
        verdict = launch_once(config, run_dir, number, line, sum(asked(config, earlier) for earlier in range(number)))
        if verdict.status != SUCCESS or verdict.stopped:
            break
    return unless_launches_remain(verdict, config.launches - 1 - number)


def unless_launches_remain(verdict: Verdict, left: int) -> Verdict:
    """A signal that came when a launch had all its cases has still kept the next ones from starting."""
    if not left or verdict.status != SUCCESS:
        return verdict
    return replace(verdict, status=FAILURE, lines=(f"ended by a signal: {left} launches have not begun",))


def launch_once(config: BenchmarkConfig, run_dir: RunDir, number: int, line: ProgressLine, before: int) -> Verdict:
    """One world, from its start to its end; `before` cases and probes have been finished before it."""
    run_dir.forget_ranks()
    command = torchrun.command(config, run_dir, number)
    cut_short_by = run_ranks(command, torchrun.environment(config), run_dir, partial(_show, run_dir, line, before))
    return judge(run_dir, cut_short_by, number)


def total(config: BenchmarkConfig) -> int:
    """Cases and probes of all launches."""
    return sum(asked(config, number) for number in range(config.launches))


def asked(config: BenchmarkConfig, launch: int) -> int:
    """Cases and probes of one launch."""
    return sum(map(len, expected_files(config, launch).values()))


def counted(expected: dict[str, list[str]]) -> str:
    """What will run, as `24 cases and 2 probes`."""
    cases, probes = (len(expected[table]) for table in ("cases", "probes"))
    return f"{cases} cases" + (f" and {probes} probe{'s' * (probes > 1)}" if probes else "")


def _show(run_dir: RunDir, line: ProgressLine, before: int) -> None:
    statuses = run_dir.rank_statuses()
    if statuses:
        line.show(before + statuses[0].done, line.total, statuses[0].case)
