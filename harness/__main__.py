"""`torchrun --nproc-per-node=4 -m harness [overrides]`: the run that `python -m launch` makes, its ranks started by the user.

The composition root beside launch: rank 0 composes, makes the run directory, tells the others of it, and renders the report.
"""

import importlib.util
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TextIO, cast

from torch.distributed import Store

from harness.rank.__main__ import leave, redirect_output, report_in, work
from harness.rank.process_group import open_store
from harness.schema.config import RENDEZVOUS_S, BenchmarkConfig
from harness.schema.matrix import expected_files
from harness.schema.rank_state import check_proc
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.terminal import Tolerant, reader_may_leave
from harness.schema.text import message_lines

_RUN_DIR = "reducebench/run_dir"
_READ = re.compile(r"(OMP|GOMP|KMP|MKL|OPENBLAS|MALLOC|LD)_\w+|PYTHON\w+|PYTORCH_((CUDA|HIP)_)?ALLOC_CONF|TORCH_LOGS", re.ASCII)
"""Variables that Python, the loader, malloc, OpenMP, MKL and torch read once, when they are loaded."""
_FAILURE, _REFUSAL = 1, 2
_ENDED_S, _LOOK_S = 5.0, 0.05
_LAST_WORDS_S = 1.0
"""Until the other ranks, told to end at the same time, have noted theirs."""


@reader_may_leave()
def main(argv: Sequence[str] | None = None) -> int:
    """Status 0, 1 or 2 as `python -m launch` gives it; torchrun makes 1 of both 1 and 2."""
    if "RANK" not in os.environ:
        print("reducebench: start the ranks with torchrun -m harness, or let python -m launch do it", file=sys.stderr)
        return _REFUSAL
    rank = int(os.environ["RANK"])
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"--help", "-h", "--version"} & set(arguments):
        return _answer(arguments) if rank == 0 else 0
    return _lead(arguments) if rank == 0 else _follow(rank)


def _lead(arguments: list[str]) -> int:
    store, _, size = open_store()
    try:
        config = _compose(arguments, size)
        run_dir = RunDir.create(config, datetime.now())
    except RefusedError as error:
        store.set(_RUN_DIR, "")
        print(f"reducebench: {message_lines(str(error))}", file=sys.stderr, flush=True)
        return _REFUSAL
    store.set(_RUN_DIR, str(run_dir.path))
    return _measure_and_report(config, run_dir, store, size)


def _follow(rank: int) -> int:
    store, _, size = open_store()
    store.wait([_RUN_DIR], timedelta(seconds=RENDEZVOUS_S))
    path = store.get(_RUN_DIR).decode()
    if not path:
        return _REFUSAL
    try:
        run_dir = RunDir.open(path)
    except RefusedError as error:
        words = message_lines(f"rank {rank}: {error}; all nodes must see results_dir")
        print(f"reducebench: {words}", file=sys.stderr, flush=True)
        return _REFUSAL
    redirect_output(run_dir.ranks.log(rank))
    return work(run_dir, *report_in(run_dir, rank), lambda: (store, rank, size))


def _check_even(ranks: int, size: int) -> None:
    """Raises RefusedError where torchrun has started more ranks on one node than on another: a run has one number for all."""
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", size // ranks))
    if nodes * ranks != size:
        raise RefusedError(
            f"torchrun has started {size} ranks on {nodes} nodes, {ranks} of them on this one: expected as many on each node; "
            "try the same --nproc-per-node on all"
        )


def _check_read(variables: Mapping[str, str]) -> None:
    """Raise RefusedError for variables of env.* that come too late: torch, and what it loads, have read them."""
    late = [name for name, value in variables.items() if _READ.fullmatch(name) and os.environ.get(name) != value]
    if late:
        raise RefusedError(
            f"env.{late[0]}={variables[late[0]]}: the ranks of a torchrun of your own have read {late[0]} when they imported "
            f"torch; accepted: its value in their environment, {os.environ.get(late[0], 'not set')}; "
            f"try export {late[0]}={shlex.quote(variables[late[0]])} before torchrun, or python -m launch"
        )


def _check_packages() -> None:
    """Raise RefusedError if Python imports another package `harness` or `launch` than this one; execute no code of launch."""
    for name in ("harness", "launch"):
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin is None or origin.parent.parent != Path(__file__).resolve().parent.parent:
            raise RefusedError(
                f"{origin or name} is another package of the name {name}, and python -m takes it, because it looks into the "
                "current directory first; try another directory, or the command reducebench"
            )


def _compose(arguments: list[str], size: int) -> BenchmarkConfig:
    """What the overrides ask for, on the ranks that torchrun has started."""
    _check_packages()
    from launch.__main__ import parse
    from launch.compose import compose_request
    from launch.flags import flags_of
    from launch.job import check

    parsed = parse(arguments)
    check_proc()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    _check_even(ranks, size)
    nodes = [] if size == ranks else [f"torchrun.nnodes={size // ranks}"]
    flags = flags_of(parsed)
    request = compose_request(nodes + parsed.overrides, flags, config_dir=parsed.config_dir, nproc_per_node=ranks)
    config, asked = request.config, request.arguments
    if parsed.multirun or parsed.cfg or parsed.sided or asked.dry_run:
        raise RefusedError(
            "--multirun, --cfg, --base, --new, --gate, --dry-run are for python -m launch: here the ranks run already"
        )
    own_launch = config.launch.get("kind", "torchrun") != "torchrun" or config.launch.get("master_port")
    if asked.resume or asked.accept_changes or asked.accept_owner or own_launch:
        raise RefusedError(
            "launch, launch.master_port, --resume, --accept-changes and --accept-owner are for python -m launch: here the "
            "ranks run already"
        )
    if config.launches > 1:
        raise RefusedError("launches is for python -m launch, which starts new processes for each: here the ranks run already")
    if asked.nccl_matrix.asked:
        raise RefusedError("nccl_matrix is for python -m launch, which starts a world for each combination: here the ranks run")
    _check_read(config.env)
    if asked.world_sizes:
        raise RefusedError(
            "--world-sizes is for python -m launch, which starts a world of each size: here the ranks run already"
        )
    if (config.torchrun.nproc_per_node, config.world_size) != (ranks, size):
        counts = f"torchrun.nproc_per_node={config.torchrun.nproc_per_node}, torchrun.nnodes={config.torchrun.nnodes}"
        raise RefusedError(f"{counts}: torchrun has started {ranks} ranks on this node and {size} in all")
    check(config, ranks)
    return config


def _measure_and_report(config: BenchmarkConfig, run_dir: RunDir, store: Store, size: int) -> int:
    """Rank 0's session, its output in its log meanwhile; then the report, on the terminal."""
    from launch.job import counted
    from launch.progress import ProgressLine

    expected, last_words = expected_files(config), _LastWords(run_dir)
    print(f"{counted(expected)} on {size} ranks: {run_dir.path}", flush=True)
    with run_dir.occupied(), _terminal() as terminal, ProgressLine(sum(map(len, expected.values())), terminal) as line:
        redirect_output(run_dir.ranks.log(0))
        reported = report_in(run_dir, 0, last_act=partial(_say_why_it_ends, last_words, terminal))
        status = work(run_dir, *reported, lambda: (store, 0, size), line.show)
    if status == 0:
        from harness.report.render import show

        return _FAILURE if show([run_dir.path]) else 0
    last_words.say(sys.stderr)
    if status == _REFUSAL:
        _discard(run_dir, size)
    return status


def _discard(run_dir: RunDir, size: int) -> None:
    """Remove a refused run once every rank has written its end there, or after a timeout."""
    deadline = time.monotonic() + _ENDED_S
    while time.monotonic() < deadline and sum(bool(status.ended) for status in run_dir.ranks.statuses()) < size:
        time.sleep(_LOOK_S)
    run_dir.discard()


def _say_why_it_ends(last_words: "_LastWords", terminal: TextIO) -> None:
    """When torchrun ends rank 0: because another rank is gone, or because it was told to end itself."""
    time.sleep(_LAST_WORDS_S)
    last_words.say(terminal)


@dataclass
class _LastWords:
    """The one message of ours when a run ends early, whichever thread comes to it first: the session's, or the guard's."""

    run_dir: RunDir
    _said: bool = False
    _speaking: threading.Lock = field(default_factory=threading.Lock)

    def say(self, terminal: TextIO) -> None:
        with self._speaking:  # who comes second may end the process, and lets the first one finish
            if not self._said:
                self._said = True
                self._tell(terminal)

    def _tell(self, terminal: TextIO) -> None:
        from launch.deaths import deaths, note_deaths
        from launch.patience import Ended
        from launch.verdict import judge

        note_deaths(self.run_dir)
        for line in judge(self.run_dir, Ended(), deaths(self.run_dir)).lines or self._unreported():
            print(f"reducebench: {message_lines(line)}", file=terminal, flush=True)

    def _unreported(self) -> tuple[str, ...]:
        """Everything is measured, and rank 0 ends before it has written the report."""
        if (self.run_dir.report / "report.md").is_file():
            return ()
        return (f"all cases are finished, the report is not written; try python -m harness.report show {self.run_dir.path}",)


@contextmanager
def _terminal() -> Iterator[TextIO]:
    """Where standard error leads now; standard output and error lead there again when the block ends."""
    kept = [os.dup(1), os.dup(2)]
    # the descriptor stays open: the guard's thread may be saying the last words there when the block ends
    terminal = os.fdopen(os.dup(2), "w", closefd=False)
    try:
        yield cast(TextIO, Tolerant(terminal))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, stream in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)


def _answer(arguments: list[str]) -> int:
    try:
        _check_packages()
    except RefusedError as error:
        print(f"reducebench: {message_lines(str(error))}", file=sys.stderr)
        return _REFUSAL
    from launch.__main__ import main as launch_main

    return launch_main(arguments)


if __name__ == "__main__":
    leave(main())
