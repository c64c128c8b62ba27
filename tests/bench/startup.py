"""Start-up of an empty run on two ranks, against a bare torchrun script that joins gloo and does one all_reduce.

`python -m tests.bench.startup 20` makes that many rounds, at least 10. A round starts the run once and the script twice.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from harness.report.frame import load_run
from harness.schema.run_dir import RunDir
from tests.bench.rounds import alternate, ratio
from tests.running import launch, torchrun

ROUNDS = 10
EMPTY = ("workload=[mlp_digits]", "reduction=[mean]", "iterations=1", "warm_up=1")
BARE = """
import sys, time
from pathlib import Path
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.all_reduce(torch.ones(1))
(Path(sys.argv[1]) / str(dist.get_rank())).write_text(repr(time.monotonic()))
dist.destroy_process_group()
"""
PHASES = ("start", "import", "join", "assemble", "pre-flight", "forward")
"""Phases of a rank up to its first warm-up step, which begins with forward."""


@dataclass(frozen=True)
class Start:
    """One start. All times are seconds from the command, and those before the exit are the slowest rank's."""

    first_step: float
    """Begin of the first warm-up step. In the bare script: end of the all_reduce."""
    exit: float
    phases: dict[str, float] = field(default_factory=dict)
    """Begin of each phase. Empty for the bare script."""
    references: float = 0.0
    """Duration of computing the references, after the first step."""


def main(rounds: int = ROUNDS) -> None:
    print_ratios(alternate([start_run, start_bare, start_bare], rounds))


def print_ratios(rounds: Sequence[tuple[Start, ...]]) -> None:
    """Print ratios and medians; a round is (run, script, script again)."""
    print(f"start-up of an empty run, 2 ranks, {len(rounds)} rounds: time from the command, relative to a bare script")
    _print_ratio("to exit", [tuple(start.exit for start in starts) for starts in rounds])
    _print_ratio("to the first warm-up step", [tuple(start.first_step for start in starts) for starts in rounds])
    runs = [run for run, *_ in rounds]
    medians = [f"{phase} {statistics.median(run.phases[phase] for run in runs):.2f}" for phase in PHASES]
    print(f"  last rank begins its phases  {', '.join(medians)} s")
    print(f"  references, after the step   {statistics.median(run.references for run in runs):.2f} s")


def _print_ratio(title: str, rounds: Sequence[tuple[float, ...]]) -> None:
    ours, bare, _ = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    compared = ratio([(run, script) for run, script, _ in rounds])
    print(f"  {title:<28} {compared}   medians {ours:.2f} s, bare script {bare:.2f} s")
    print(f"  bare script again (A/A)      {ratio([(again, script) for _, script, again in rounds])}")


def start_run() -> Start:
    """Start the empty run."""
    with tempfile.TemporaryDirectory() as folder:
        began = monotonic()
        done = launch(*EMPTY, f"results_dir={folder}")
        ended = monotonic()
        if done.returncode:
            sys.exit(done.stderr)
        latest = Path(folder) / "default" / "latest"
        ranks = [status.reached for status in RunDir(latest).ranks.statuses()]
        phases = {phase: max(reached[phase] for reached in ranks) - began for phase in PHASES}
        return Start(phases["forward"], ended - began, phases, float(load_run(latest).cases.reference_s.sum()))


def start_bare() -> Start:
    """Start the bare script."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE)
        began = monotonic()
        done = torchrun(2, str(script), folder)
        ended = monotonic()
        if done.returncode:
            sys.exit(done.stderr)
        reduced = max(float((Path(folder) / str(rank)).read_text()) for rank in range(2))
        return Start(reduced - began, ended - began)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
