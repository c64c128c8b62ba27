"""An A/B run: two configurations whose launches alternate, so that the drift of the machine falls on both alike."""

import datetime
import shlex
from collections.abc import Iterator, Sequence

from harness.schema.case import AXES
from harness.schema.config import BenchmarkConfig
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch import torchrun
from launch.job import asked, configure, launch_once, total
from launch.progress import ProgressLine
from launch.verdict import SUCCESS, Verdict

LAUNCHES = 5
"""Of each side, unless `launches` says otherwise: fewer can hardly show a difference."""
SIDES = ("base", "new")


def configure_sides(
    overrides: Sequence[str], base: Sequence[str], new: Sequence[str], config_dir: str | None
) -> list[BenchmarkConfig]:
    """The two configurations; their runs go to <name>-base and <name>-new. Raises RefusedError."""
    common = [f"launches={LAUNCHES}", *overrides] if not _says_launches(overrides) else list(overrides)
    configs = [configure([*common, *own], config_dir) for own in (base, new)]
    if any(config.world_sizes for config in configs):
        raise RefusedError("world_sizes makes a run of each size; an A/B run has two sides")
    for config, side in zip(configs, SIDES, strict=True):
        config.name = f"{config.name}-{side}"
    return configs


def compare_arguments(configs: Sequence[BenchmarkConfig], gates: Sequence[str]) -> list[str]:
    """How the report is to hold the sides against each other. Raises RefusedError for what it would refuse after measuring."""
    if gates:
        from harness.report.gates import parse_gate  # pandas: only where it is needed

        for gate in gates:
            parse_gate(gate)
    apart = [axis for axis in AXES if not set(getattr(configs[0], axis)) & set(getattr(configs[1], axis))]
    single = [axis for axis in apart if all(len(getattr(config, axis)) == 1 for config in configs)]
    if len(apart) > 1 or apart != single:
        raise RefusedError(f"--base and --new have no case in common: they have no option in common of {', '.join(apart)}")
    return [*(["--across", apart[0]] if apart else []), *(part for gate in gates for part in ("--gate", gate))]


def run_sides(configs: Sequence[BenchmarkConfig]) -> tuple[Verdict, list[RunDir]]:
    """Both runs; after a launch that did not go well there is no next. Raises RefusedError when there is nowhere to write."""
    now = datetime.datetime.now()
    run_dirs = [RunDir.create(config, now) for config in configs]
    for config, run_dir, side in zip(configs, run_dirs, SIDES, strict=True):
        print(f"{side}, {config.launches} times:\n$ {shlex.join(torchrun.command(config, run_dir))}", flush=True)
    with ProgressLine(sum(map(total, configs))) as line:
        verdict = _alternate(configs, run_dirs, line)
    for run_dir in run_dirs:
        run_dir.remove_scratch()
    return verdict, run_dirs


def turns(launches: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(side, launch) in order: base new, new base, base new ...: neither side is always first."""
    for number in range(max(launches)):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            if number < launches[side]:
                yield side, number


def _alternate(configs: Sequence[BenchmarkConfig], run_dirs: Sequence[RunDir], line: ProgressLine) -> Verdict:
    done = 0
    for side, number in turns([config.launches for config in configs]):
        verdict = launch_once(configs[side], run_dirs[side], number, line, done)
        if verdict.status != SUCCESS:
            break
        done += asked(configs[side], number)
    return verdict


def _says_launches(overrides: Sequence[str]) -> bool:
    return any(override.split("=")[0].lstrip("+") == "launches" for override in overrides)
