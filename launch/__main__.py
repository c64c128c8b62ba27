"""`python -m launch [overrides]`, console script `reducebench`: the parent process. It imports no torch."""

import argparse
import atexit
import errno
import gc
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from launch.start import another_harness

if another_harness():  # beside another folder `launch`, with a reducebench that is installed in place
    sys.exit(another_harness())

from harness import __version__
from harness.schema.arguments import Arguments
from harness.schema.config import dump_config
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.terminal import reader_may_leave
from harness.schema.text import message_lines, plain
from launch.ab import compare_arguments, configure_sides, run_sides
from launch.compose import Request, available_options, compose_request, split_sweep
from launch.flags import add_flags, flag, flags_of
from launch.help import help_text
from launch.job import configure, launch, resume, settle
from launch.matrix import again, matrix_runs
from launch.resume import configure_resume, is_resume
from launch.verdict import FAILURE, REFUSAL, SUCCESS, Verdict

atexit.register(gc.freeze)  # looking for garbage as the interpreter ends takes a tenth of a dry run

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM)
"""Error numbers of a file system that cannot be written to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0: every case is ok or skipped; 1: a case failed or a rank died; 2: the configuration was refused."""
    with reader_may_leave():
        return _answer(argv)


def _answer(argv: Sequence[str] | None) -> int:
    arguments = parse(argv)
    try:
        return _do(arguments)
    except RefusedError as error:
        return refuse(error)
    except OSError as error:
        return refuse(RefusedError(_of_the_system(error)), FAILURE)
    except KeyboardInterrupt:  # outside of a run's own time, as in the report
        return refuse(RefusedError("ended by SIGINT"), FAILURE)


def _do(arguments: argparse.Namespace) -> int:
    if arguments.help:
        print(help_text(available_options(arguments.config_dir)), end="")
        return SUCCESS
    flags = flags_of(arguments)
    if arguments.sided:
        return _run_sides(arguments, flags)
    if is_resume(arguments.overrides, flags) and (arguments.multirun or arguments.config_dir or arguments.cfg):
        raise RefusedError(
            "--resume: continues one run as it was configured; accepted: neither --multirun nor --config-dir nor --cfg"
        )
    if arguments.cfg:
        request = compose_request(arguments.overrides, flags, config_dir=arguments.config_dir)
        print(dump_config(settle(request.config)), end="")
        return SUCCESS
    if arguments.multirun:
        return _run_all(split_sweep(arguments.overrides), flags, arguments.config_dir)
    return _run(arguments.overrides, flags, arguments.config_dir)[0].status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of our own; the rest are overrides."""
    parser = argparse.ArgumentParser(prog="python -m launch", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", action="store_true")
    parser.add_argument("--base", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--new", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--gate", action="append", default=[], metavar="METRIC=LIMIT")
    add_flags(parser)
    parser.add_argument("overrides", nargs="*")
    parsed = parser.parse_intermixed_args(argv)
    parsed.sided = parsed.base is not None or parsed.new is not None or bool(parsed.gate)
    return parsed


def _of_the_system(error: OSError) -> str:
    """Return what could not be done, where the error names it."""
    why = error.strerror or str(error)
    if error.errno in _DISK:
        return f"cannot write{f' {error.filename}' if error.filename else ''}: {why}"
    return f"{error.filename}: {why}" if error.filename else f"{type(error).__name__}: {why}"


def refuse(error: RefusedError, status: int = REFUSAL) -> int:
    """One message, no traceback."""
    print(f"reducebench: {message_lines(str(error))}", file=sys.stderr)
    return status


def _run(overrides: list[str], flags: Mapping[str, Any], config_dir: str | None) -> tuple[Verdict, RunDir | None]:
    """One run with its report; a failed case makes the status 1."""
    if is_resume(overrides, flags):
        return _resume(overrides, flags)
    request = compose_request(overrides, flags, config_dir=config_dir)
    if request.arguments.resume:
        raise RefusedError(f"resume={request.arguments.resume}: an experiment cannot resume a run; try --resume RUN_DIR")
    alone = next((name for name in ("accept_changes", "accept_owner") if getattr(request.arguments, name)), "")
    if alone:
        raise RefusedError(f"{flag(alone)}: applies to a run that is resumed; accepted: beside --resume RUN_DIR")
    if request.arguments.world_sizes:
        return _run_sizes(overrides, config_dir, request.arguments)
    if request.arguments.nccl_matrix.asked:
        return _run_matrix(request)
    return _told(*launch(settle(request.config), dry_run=request.arguments.dry_run))


def _told(verdict: Verdict, run_dir: RunDir | None) -> tuple[Verdict, RunDir | None]:
    """Say what happened, and write the report of what is there."""
    _say(verdict, run_dir)
    if verdict.stopped or run_dir is None or not run_dir.listed() or verdict.status == REFUSAL:
        return verdict, run_dir
    return replace(verdict, status=max(verdict.status, _report([run_dir]))), run_dir


def _resume(overrides: list[str], flags: Mapping[str, Any]) -> tuple[Verdict, RunDir | None]:
    """The rest of a run, and its report."""
    going = configure_resume(overrides, flags)
    verdict, run_dir = resume(going)
    return _told(verdict, run_dir) if not going.arguments.dry_run else (verdict, run_dir)


def _run_sizes(overrides: list[str], config_dir: str | None, arguments: Arguments) -> tuple[Verdict, RunDir | None]:
    """A run for each number of ranks, whatever became of the ones before; then one report over them."""
    run_dirs, worst, sizes = [], SUCCESS, arguments.world_sizes
    jobs = [[*overrides, f"torchrun.nproc_per_node={size}"] for size in sizes]
    configs = [configure(job, config_dir) for job in jobs]  # what is refused is refused before anything is measured
    for size, config in zip(sizes, configs, strict=True):
        print(f"\n{size} rank{'s' * (size > 1)}:", flush=True)
        verdict, run_dir = launch(config, dry_run=arguments.dry_run)
        _say(verdict, run_dir)
        worst = max(worst, verdict.status)
        run_dirs += [run_dir] if run_dir and run_dir.listed() else []
        if verdict.stopped:
            break
    if run_dirs:
        worst = max(worst, _report(run_dirs))
    return replace(verdict, status=worst), run_dir


def _run_matrix(request: Request) -> tuple[Verdict, RunDir | None]:
    """A run for each combination of NCCL's settings, then one table over them.

    A combination that NCCL refuses is a row of the table, and no failure; the first run, in which NCCL decides, must succeed.
    """
    run_dirs, worst, runs = list[RunDir](), SUCCESS, matrix_runs(request.config, request.arguments.nccl_matrix)
    for number, (combination, own) in enumerate(runs, 1):
        print(f"\nrun {number} of {len(runs)}: {combination}", flush=True)
        verdict, run_dir = launch(own, dry_run=request.arguments.dry_run, keep_refused=True)
        _say(verdict, run_dir)
        run_dirs += [run_dir] if run_dir else []
        if number == 1 or (run_dir and run_dir.listed()):
            worst = max(worst, verdict.status)
        if verdict.stopped or worst == REFUSAL:
            break
    if run_dirs:
        _report(run_dirs)
        print(plain(f"to show it again: {again(run_dirs)}"))
    return replace(verdict, status=worst), run_dir


def _run_sides(arguments: argparse.Namespace, flags: Mapping[str, Any]) -> int:
    """Two configurations in turn, a report of each, and the one held against the other; a broken gate makes the status 1."""
    if arguments.base is None or arguments.new is None or arguments.multirun or arguments.cfg:
        raise RefusedError(
            "an A/B run takes --base OVERRIDES --new OVERRIDES, after what both have in common; no --multirun, no --cfg"
        )
    configs, dry_run = configure_sides(arguments.overrides, arguments.base, arguments.new, arguments.config_dir, flags)
    comparison = compare_arguments(configs, arguments.gate)
    if dry_run:
        return max(launch(config, dry_run=True)[0].status for config in configs)
    verdict, run_dirs = run_sides(configs)
    _print_lines(verdict)
    if verdict.status != SUCCESS:
        return verdict.status
    from harness.report.__main__ import main as report
    from harness.report.render import build, write  # pandas: not before the ranks have been started

    reports = [build(run_dir.path) for run_dir in run_dirs]
    for page in map(write, reports):
        print(plain(str(page)))
    failed = FAILURE if any(one.failed for one in reports) else SUCCESS
    return max(failed, report(["compare", *(str(run_dir.path) for run_dir in run_dirs), *comparison]))


def _say(verdict: Verdict, run_dir: RunDir | None) -> None:
    _print_lines(verdict)
    if run_dir and not verdict.complete and verdict.status != REFUSAL:
        print(f"to go on: python -m launch --resume {shlex.quote(plain(str(run_dir.path)))}", file=sys.stderr)
    if run_dir and verdict.status != REFUSAL and (verdict.stopped or not run_dir.listed()):
        holds = "the finished cases are" if run_dir.listed() else "no case is finished; the ranks' logs are"
        print(plain(f"{holds} in {run_dir.path}; python -m harness.report show {run_dir.path}"))


def _print_lines(verdict: Verdict) -> None:
    """What ranks said comes from outside: without characters that steer a terminal, but for a message's own lines."""
    for message in verdict.lines:
        print(f"reducebench: {message_lines(message)}", file=sys.stderr)


def _report(run_dirs: list[RunDir]) -> int:
    from harness.report.render import show  # pandas: not before the ranks have been started

    return FAILURE if show([run_dir.path for run_dir in run_dirs]) else SUCCESS


def _run_all(jobs: list[list[str]], flags: Mapping[str, Any], config_dir: str | None) -> int:
    """Every job runs, whatever became of the ones before; the worst status is the sweep's."""
    rows, worst = [], SUCCESS
    for number, overrides in enumerate(jobs, 1):
        print(f"\nrun {number} of {len(jobs)}: {plain(' '.join(overrides))}", flush=True)
        try:
            verdict, run_dir = _run(overrides, flags, config_dir)
        except RefusedError as error:
            verdict, run_dir = Verdict(refuse(error)), None
        worst = max(worst, verdict.status)
        rows.append((plain(" ".join(overrides)), _MEANING[verdict.status], str(run_dir.path) if run_dir else "-"))
        if verdict.stopped:
            break
    _close(rows, len(jobs))
    return worst


_MEANING = {SUCCESS: "0 ok", FAILURE: "1 failed", REFUSAL: "2 refused"}


def _close(rows: list[tuple[str, str, str]], jobs: int) -> None:
    """The table that closes a sweep."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("overrides", "status", "run", title=f"{len(rows)} of {jobs} runs")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
