"""Runs whose line on cost states a ratio: of two options that do the same work, and of one with a planted wait.

`python -m tests.bench.cost_line 10` makes ten runs of each setting.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

from harness.report.answer import answer
from harness.report.cost import cost
from harness.report.frame import Run, load_run
from harness.report.timing import timing
from tests.bench.same import OWN
from tests.worlds.pool import Pool

RUNS = 50
WAITS = (0.2, 0.5, 1.0)
"""Shares of the step of `mean`, which a planted option waits in each step."""
NAMES = ("sum", *(f"+{share:.0%}" for share in WAITS))
MATRIX = ("workload=[mlp_digits]", "reduction=[mean,sum,planted]")
SETTINGS = {
    "one visit a case, of 10 iterations": (),
    "20 rounds of 3 iterations": ("order=interleaved", "rounds=20", "iterations=60"),
}
"""Overrides of the defaults."""
_RECENT = 5
_RATIO = re.compile(r" times as much \[(?P<low>.*), (?P<high>.*)\]")
_OPEN = re.compile(r"ratios from (?P<low>.*) to (?P<high>.*) fit")


@dataclass(frozen=True)
class Line:
    """The line on cost for `mean` and another case, as if the run had these two alone."""

    claimed: bool
    half: float
    """Square root of the high end of the interval over its low end: 1.4 means that it reaches 1.4 times up and down."""


def lines(run: Run) -> list[Line]:
    """One line for `sum`, then one for each planted wait, from the shortest."""
    mean, *others = run.cases.case_id
    return [_read(_second_line(run, (mean, other))) for other in others]


def step_ms(run: Run) -> float:
    """Median of the slowest rank's step of `mean`, which is the first case."""
    return float(timing(_only(run, run.cases.case_id[:1])).steps.step_s.median()) * 1e3


def _second_line(run: Run, cases: Sequence[str]) -> str:
    two = _only(run, cases)
    timed = timing(two)
    return answer(two, cost(two, timed), timed)[1]


def _only(run: Run, cases: Sequence[str]) -> Run:
    return replace(run, cases=run.cases[run.cases.case_id.isin(cases)].reset_index(drop=True))


def _read(line: str) -> Line:
    claim = _RATIO.search(line)
    ends = claim or _OPEN.search(line)
    assert ends is not None, line
    return Line(claim is not None, (float(ends["high"]) / float(ends["low"])) ** 0.5)


def _runs(pool: Pool, folder: str, overrides: Sequence[str], count: int) -> Iterator[Run]:
    """Runs one after the other; the waits are shares of the step that the last few of them have seen."""
    recent = [step_ms(_run(pool, folder, [5.0], overrides))]
    for _ in range(count):
        step = median(recent[-_RECENT:])
        run = _run(pool, folder, [round(share * step, 3) for share in WAITS], overrides)
        recent.append(step_ms(run))
        yield run


def _run(pool: Pool, folder: str, waits: Sequence[float], overrides: Sequence[str]) -> Run:
    planted = f"reduction.planted.milliseconds={list(waits)}".replace(" ", "")
    arguments = ["--config-dir", OWN, *MATRIX, planted, *overrides, f"results_dir={folder}"]
    return load_run(pool.run(2, "tests.worlds.session:measure", arguments))


def main(count: int = RUNS) -> None:
    print(
        f"runs, of {count}, whose line on cost states a ratio of mean and another option; factor up and down of its interval:"
    )
    with Pool() as pool, tempfile.TemporaryDirectory() as folder:
        for title, overrides in SETTINGS.items():
            _print_setting(title, _runs(pool, folder, overrides, count))


def _print_setting(title: str, runs: Iterator[Run]) -> None:
    start = perf_counter()
    seen = [(lines(run), step_ms(run), os.getloadavg()[0]) for run in runs]
    found, steps, loads = zip(*seen, strict=True)
    load = f"load {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores"
    print(f"  {title}: mean takes {median(steps):.1f} ms; {load}; {perf_counter() - start:.0f} s", flush=True)
    for name, own in zip(NAMES, zip(*found, strict=True), strict=True):
        print(f"    {name:<6} {sum(line.claimed for line in own):>3}   {median(line.half for line in own):.2f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
