"""One trial of a command line: `python -m launch` in this process, up to the start of ranks, and what ranks would then make."""

import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from harness.axes.workload.base import Workload
from harness.rank.assemble import make
from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig, dump_config, load_config
from harness.schema.matrix import expand_cases
from harness.schema.refusal import RefusedError
from harness.schema.sweep import variants
from harness.schema.text import message_lines
from launch import job
from launch.__main__ import main
from launch.compose import available_options
from launch.verdict import REFUSAL, Verdict
from tests.launch.overrides import Lines
from tests.launch.writes import changes_outside
from tests.running import BEGUN_S as HANG_S

_SMALL = 256
"""Largest parameter of a model that is built."""
_SEVERAL = ("--multirun", "--world-sizes", "world_sizes", "single_vs_multi", "nccl_matrix")
"""Parts of a command that may make several runs."""
_FEW = 50
"""Cases whose options are looked up again, as a rank does."""


class Trial:
    """Trials that share a folder, and the objects that ranks would make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"

    def attempt(self, line: list[str], start: bool = False) -> int:
        """Run a command line, as a dry run or up to the start of ranks that all refuse; return its status, after all checks."""
        accepted: list[BenchmarkConfig] = []
        dry = "dry_run=true" if any("dry_run" in part for part in line) else "--dry-run"
        ending = [f"results_dir={self.results}"] if start else [dry]
        output, errors = StringIO(), StringIO()
        with _stopped(accepted), changes_outside(self.results) as outside, redirect_stdout(output), redirect_stderr(errors):
            status = _status(lambda: main([*line, *ending]))
        assert outside == [], outside
        self._check_output(
            status,
            output.getvalue(),
            errors.getvalue(),
            several=any(name in part for name in _SEVERAL for part in line),
        )
        assert list(self.folder.iterdir()) in ([], [self.results]), "something is left"
        assert not self.results.exists() or not list(self.results.iterdir()), "a refused run is left"
        for config in accepted:
            self._check_on_ranks(config)
        return status if not (start and accepted) else 0

    def _check_output(self, status: int, output: str, errors: str, several: bool) -> None:
        assert status in (0, 2), status
        assert "Traceback" not in output + errors
        messages = errors.count("reducebench: ")
        assert (messages > 0) == (status == 2) and (several or messages <= 1), errors
        assert message_lines(output + errors).split("\n") == (output + errors).splitlines(), "characters that steer a terminal"
        (output + errors).encode()

    def _check_on_ranks(self, config: BenchmarkConfig) -> None:
        """Read the configuration as ranks do, and make every option of it. Raises where ranks would refuse it."""
        stored = self.folder.parent / f"{self.folder.name}.yaml"
        stored.write_text(dump_config(config))
        read = load_config(stored)
        stored.unlink()
        assert read == config
        for axis in (*AXES, PROBE):
            for option, node in variants(getattr(config, axis)):
                _made(axis, option, json.dumps(node), config.config_dir)
        few = expand_cases(config)[:_FEW]
        assert len({case.case_id for case in few}) == len({*few}) == len(few)


def attempt_all(lines: Lines, seeds: Iterable[int], folder: Path) -> Counter[int]:
    """Try a line for each seed, each third up to the start of ranks; return how many ended with each status."""
    trial, seen = Trial(folder), Counter[int]()
    for seed in seeds:
        line = lines.draw(seed)
        try:
            with _hang_limit(HANG_S):
                seen[trial.attempt(line, start=seed % 3 == 0)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {shlex.join(line)}") from error
    return seen


class HangError(Exception):
    """A trial that takes longer than a busy machine explains."""


@contextmanager
def _hang_limit(seconds: float) -> Iterator[None]:
    def end(*_: object) -> None:
        raise HangError(f"after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _status(call: Callable[[], int]) -> int:
    try:
        return call()
    except SystemExit as error:  # of argparse
        return int(error.code or 0)


@contextmanager
def _stopped(accepted: list[BenchmarkConfig]) -> Iterator[None]:
    """Note every configuration that comes as far as a plan; ranks that are started refuse, and no batch system is asked."""
    plan = job.plan

    def noted(config: BenchmarkConfig, *arguments: Any) -> str:
        accepted.append(config)
        return plan(config, *arguments)

    def refused(*arguments: Any) -> Verdict:
        return Verdict(REFUSAL, ("the ranks refuse",))

    def no_batch_system(*arguments: Any) -> str:
        raise RefusedError("launch=slurm: sbatch: none here")

    with (
        patch.object(job, "plan", noted),
        patch.object(job, "run_launch", refused),
        patch.object(job.slurm, "submit", no_batch_system),
    ):
        yield


@cache
def _made(axis: str, option: str, node: str, config_dir: str | None) -> None:
    """Make an option, and the model of a workload that is small."""
    with patch.object(sys, "path", [config_dir, *sys.path] if config_dir else sys.path):
        made = make(axis, option, node)
        sizes = [value for value in json.loads(node).values() if isinstance(value, int)]
        if isinstance(made, Workload) and max(sizes, default=0) <= _SMALL:
            made.build_model(0)


def _main() -> None:
    """Try the seeds from the first to the last argument, and print every line that fails."""
    lines, seen, first, last = Lines(available_options()), Counter[object](), *map(int, sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for seed in range(first, last):
            try:
                seen += attempt_all(lines, [seed], Path(folder))
            except AssertionError as error:
                seen["failed"] += 1
                traceback.print_exception(error, limit=-5)
                shutil.rmtree(Path(folder) / "results", ignore_errors=True)
    print(dict(seen))


if __name__ == "__main__":
    _main()
