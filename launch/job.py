"""One run: from a checked configuration to the verdict on it."""

import datetime
import gc
import importlib
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache, partial
from math import prod
from secrets import token_hex

from harness.schema.case import AXES
from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Slurm, Torchrun, TorchrunNodes
from harness.schema.matrix import expected_files
from harness.schema.progress import read_progress
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.sweep import check_count, count_variants
from harness.schema.text import message_lines
from launch import nodes, slurm, torchrun
from launch.brought import brought, doubt
from launch.compose import compose_config
from launch.devices import check_ranks, default_ranks
from launch.host import check_host
from launch.progress import ProgressLine
from launch.resume import Going, check_ranks_stay, go_on
from launch.signals import signals_noted
from launch.supervise import Start
from launch.task import Task
from launch.verdict import FAILURE, REFUSAL, SUCCESS, Verdict
from launch.worlds import Starter, run_launch


def configure(overrides: list[str], config_dir: str | None) -> BenchmarkConfig:
    """Everything that can be refused before a rank starts is refused here, by RefusedError."""
    return settle(compose_config(overrides, config_dir=config_dir))


def settle(config: BenchmarkConfig) -> BenchmarkConfig:
    """The configuration with a number of nodes and of ranks, checked against this host. Raises RefusedError."""
    nodes, ranks = _nodes(config), _ranks_per_node(config)
    restarts = 0 if isinstance(config.launcher, TorchrunNodes) and not config.launcher.hosts else config.restarts
    try:
        counts = replace(config.torchrun, nnodes=nodes, nproc_per_node=ranks)
        config = replace(config, torchrun=counts, restarts=restarts)
    except ValueError as error:  # too many ranks for what else is asked for
        raise RefusedError(str(error)) from error
    check(config, config.torchrun.nproc_per_node or 1)
    return config


def _nodes(config: BenchmarkConfig) -> int:
    asked, launcher = config.torchrun.nnodes, config.launcher
    if isinstance(launcher, Torchrun) and asked > 1:
        raise RefusedError(
            f"torchrun.nnodes={asked}: launch=torchrun starts one host; use launch=torchrun_nodes or launch=slurm"
        )
    if not isinstance(launcher, TorchrunNodes):
        return asked
    if not launcher.hosts and config.launches > 1:
        raise RefusedError("launches: a person starts the hosts, once; with launch.hosts=[...] they are started by ssh")
    if launcher.hosts and asked not in (1, len(launcher.hosts)):
        raise RefusedError(f"torchrun.nnodes={asked}, and launch.hosts names {len(launcher.hosts)}")
    return len(launcher.hosts) or asked


def _ranks_per_node(config: BenchmarkConfig) -> int:
    asked, launcher = config.torchrun.nproc_per_node, config.launcher
    if asked is None and isinstance(launcher, Slurm):
        if not launcher.gpus_per_node and config.device != "cpu":
            raise RefusedError(
                "launch=slurm: say launch.gpus_per_node, or torchrun.nproc_per_node: this host is none of the job's"
            )
        return launcher.gpus_per_node or default_ranks("cpu")
    return asked or default_ranks(config.device, config.env)


def check(config: BenchmarkConfig, ranks: int) -> None:
    """Check the number of cases, and the devices of this host where ranks run on it. Raises RefusedError."""
    check_count(prod(count_variants(getattr(config, axis)) for axis in AXES), "the product of all axes")
    if isinstance(config.launcher, Torchrun):
        check_ranks(config, ranks)


def launch(config: BenchmarkConfig, *, dry_run: bool = False, keep_refused: bool = False) -> tuple[Verdict, RunDir | None]:
    """Make the run directory, run the ranks, and judge. Raises RefusedError when the directory cannot be made.

    dry_run: print the plan, and start nothing.
    keep_refused: keep the directory of a run that its ranks refuse, with the reason in failures.json.
    """
    if dry_run:
        print(message_lines(f"would run {asked_for(config)}:\n{plan(config, RunDir('RUN_DIR'), Task(world='WORLD'))}"))
        return Verdict(SUCCESS), None
    check_host(config)
    run_dir = RunDir.create(config, datetime.datetime.now())
    try:
        with _at_work(config, run_dir):
            verdict, _ = _run(config, run_dir, Task(), range(config.launches))
    except RefusedError:
        run_dir.discard()
        raise
    if keep_refused and verdict.status == REFUSAL:
        _note_refusal(run_dir, verdict)
        return verdict, run_dir
    return verdict, kept(run_dir, verdict)


def _note_refusal(run_dir: RunDir, verdict: Verdict) -> None:
    at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    culprit = {"rank": None, "host": "", "case": "", "phase": "pre-flight", "how": f"refused: {' '.join(verdict.lines)}"}
    run_dir.note_failure({"at": at, "launch": 0, "culprits": [culprit]})


def kept(run_dir: RunDir, verdict: Verdict) -> RunDir | None:
    """Return the run directory; remove it and return None if the ranks refused the run."""
    if verdict.status == REFUSAL:
        run_dir.discard()
    return run_dir if run_dir.path.is_dir() else None


def resume(going: Going) -> tuple[Verdict, RunDir]:
    """Do what is missing of a run, or failed."""
    going = replace(going, config=settle(going.config))
    check_ranks_stay(going)
    slurm.check_no_job(going.run_dir)
    config, run_dir, task = going.config, going.run_dir, Task(retry=True, accept=going.arguments.accept_changes)
    print(message_lines(going.said), flush=True)
    if going.arguments.dry_run:
        lines = [*brought(run_dir, config), "would run:", plan(config, run_dir, task)]
        print(message_lines("\n".join(lines)))
        return Verdict(SUCCESS), run_dir
    if not going.launches:
        return Verdict(SUCCESS, complete=True), run_dir
    if doubt(run_dir):  # --accept-owner
        print(
            message_lines("\n".join(f"reducebench: {line}" for line in brought(run_dir, config))), file=sys.stderr, flush=True
        )
    check_host(config)
    with _at_work(config, run_dir):
        go_on(going)
        return _run(config, run_dir, task, going.launches)


def _at_work(config: BenchmarkConfig, run_dir: RunDir) -> AbstractContextManager[None]:
    """A batch job occupies the run directory itself."""
    return nullcontext() if isinstance(config.launcher, Slurm) else run_dir.occupied()


def _run(config: BenchmarkConfig, run_dir: RunDir, task: Task, launches: Sequence[int]) -> tuple[Verdict, RunDir]:
    if isinstance(config.launcher, TorchrunNodes) and not config.launcher.hosts:
        task = replace(task, world=token_hex(4))  # it stands in the command that a person types
    print(message_lines(f"{asked_for(config)}, on {config.world_size} ranks:\n{plan(config, run_dir, task)}"), flush=True)
    with ProgressLine(total(config)) as line:
        show = partial(_show, run_dir, line)
        if isinstance(config.launcher, Slurm):
            return _in_batch(config, run_dir, task, config.launcher, show), run_dir
        verdict = run_all(config, run_dir, task, _STARTERS[type(config.launcher)], show, launches)
        run_dir.remove_scratch()
    return verdict, run_dir


def run_all(
    config: BenchmarkConfig,
    run_dir: RunDir,
    task: Task,
    start: Starter,
    show: Callable[[int], None],
    numbers: Sequence[int],
) -> Verdict:
    """Run these launches, one after the other; after one that did not come to its end there is no next."""
    worst, told, verdict = SUCCESS, list[str](), Verdict(SUCCESS, complete=True)
    for place, number in enumerate(numbers):
        before = asked_before(config, number)
        verdict = run_launch(config, run_dir, replace(task, launch=number), start, partial(show, before))
        worst, told = max(worst, verdict.status), [*told, *verdict.lines]
        if verdict.stopped or not verdict.complete:
            return unless_launches_remain(replace(verdict, status=worst, lines=tuple(told)), len(numbers) - 1 - place)
    return replace(verdict, status=worst, lines=tuple(told))


def launch_once(config: BenchmarkConfig, run_dir: RunDir, number: int, line: ProgressLine, before: int) -> Verdict:
    """One launch of a run on this host, or these; `before` cases and probes have been finished before it."""
    starter = _STARTERS[type(config.launcher)]
    return run_launch(config, run_dir, Task(launch=number), starter, partial(_show, run_dir, line, before))


def unless_launches_remain(verdict: Verdict, left: int) -> Verdict:
    """A signal that came when a launch had all its cases has still kept the next ones from starting."""
    if not left or verdict.status == REFUSAL or not verdict.stopped or not verdict.complete:
        return verdict
    return replace(verdict, status=FAILURE, lines=(*verdict.lines, f"ended by a signal: {left} launches have not begun"))


def _in_batch(config: BenchmarkConfig, run_dir: RunDir, task: Task, launcher: Slurm, show: Callable[[int], None]) -> Verdict:
    """Submit the script that lies in the run directory, and follow it; the job leaves its own verdict there."""
    run_dir.write_batch_script(slurm.script(config, run_dir, task))
    run_dir.ranks.forget_verdict()
    with signals_noted() as received:
        job = slurm.submit(run_dir)
        run_dir.ranks.note_job(job)
        print(f"submitted as job {job}", flush=True)
        state = slurm.follow(job, launcher, lambda: show(0), received)
    if received:
        return Verdict(FAILURE, (f"ended by {received[0]}: job {job} is {state.lower()}",), stopped=True)
    status, lines = slurm.verdict(run_dir)
    if status is None:
        how = "may still be there: Slurm does not answer" if state == slurm.UNKNOWN else f"ended as {state} and left no verdict"
        return Verdict(FAILURE, (f"job {job} {how}; see {run_dir.ranks.log('slurm')}",))
    return Verdict(status, tuple(lines), complete=not read_progress(run_dir, config).unfinished)


def _one_host(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> list[Start]:
    return [Start(torchrun.command(config, run_dir, task), torchrun.environment(config), "torchrun")]


_STARTERS: dict[type, Starter] = {Torchrun: _one_host, TorchrunNodes: nodes.starts}


def plan(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> str:
    """What is run, as a person would type it."""
    if isinstance(config.launcher, Slurm):
        return f"$ sbatch {run_dir.batch_script}\n{slurm.script(config, run_dir, task)}"
    if isinstance(config.launcher, TorchrunNodes) and not config.launcher.hosts:
        return "\n".join(nodes.by_hand(config, run_dir, task))
    return "\n".join(f"$ {shlex.join(start.command)}" for start in _STARTERS[type(config.launcher)](config, run_dir, task))


def asked_for(config: BenchmarkConfig) -> str:
    """What will run, as `24 cases and 2 probes, 5 times`."""
    return counted(expected_files(config)) + (f", {config.launches} times" if config.launches > 1 else "")


def total(config: BenchmarkConfig) -> int:
    """Cases and probes of all launches."""
    return asked_before(config, config.launches)


def asked_before(config: BenchmarkConfig, launch: int) -> int:
    """Cases and probes of the launches before this one; the first of them asks the probes."""
    return asked(config, 0) + (launch - 1) * asked(config, 1) if launch else 0


def asked(config: BenchmarkConfig, launch: int) -> int:
    """Cases and probes of one launch."""
    return sum(map(len, expected_files(config, launch).values()))


def counted(expected: dict[str, list[str]]) -> str:
    """What will run, as `24 cases and 2 probes`."""
    cases, probes = (len(expected[table]) for table in ("cases", "probes"))
    return f"{cases} case{'s' * (cases != 1)}" + (f" and {probes} probe{'s' * (probes > 1)}" if probes else "")


def _show(run_dir: RunDir, line: ProgressLine, before: int) -> None:
    _preload_report()
    statuses = run_dir.ranks.statuses()
    if statuses:
        line.show(before + statuses[0].done, line.total, statuses[0].case)


@cache
def _preload_report() -> None:
    """Import the report in a thread, once: it takes 0.5 s, in which torchrun, alone on one core, has not started a rank yet."""
    threading.Thread(target=_import_report, name="preload").start()


def _import_report() -> None:
    with suppress(Exception):  # the import that shows the report raises it again, where somebody is told
        importlib.import_module("harness.report.render")
        gc.freeze()  # modules are never garbage, and looking through them takes 0.2 s when the interpreter ends
