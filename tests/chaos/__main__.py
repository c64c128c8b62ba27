"""`make chaos`: every fault once, each on a run of its own, and a table of what was seen. Status 1 when anything was lost."""

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.trial import Trial, attempt, undisturbed

_AT_ONCE = 3
_MARKS = {True: "yes", False: "NO", None: "-"}
_CHECKS = ("in_time", "status", "named", "no_orphan", "loads", "kept", "resumed", "equal")


def main(asked: list[str]) -> int:
    """`asked` are parts of faults' names; none: all of them."""
    chosen = [fault for fault in FAULTS if not asked or any(part in fault.name for part in asked)]
    skipped = [fault for fault in chosen if fault.missing]
    began = time.monotonic()
    with TemporaryDirectory(prefix="chaos") as folder, ThreadPoolExecutor(_AT_ONCE) as pool:
        kinds = {(), *(fault.overrides for fault in chosen)}
        expected = {kind: undisturbed(Path(folder) / f"undisturbed{place}", kind) for place, kind in enumerate(kinds)}
        tried = enumerate(fault for fault in chosen if not fault.missing)
        trials = list(pool.map(lambda each: _attempted(*each, Path(folder), expected), tried))
    Console(width=150).print(_table(trials))
    for fault in skipped:
        print(f"not tried: {fault.name}: {fault.missing}")
    bad = [trial for trial in trials if not trial.good]
    print(f"{len(trials)} faults in {time.monotonic() - began:.0f} s; something was lost in {len(bad)}")
    return int(bool(bad) or bool(skipped))


def _attempted(number: int, fault: Fault, folder: Path, expected: Mapping[tuple[str, ...], pd.DataFrame]) -> Trial:
    try:
        trial = attempt(fault, folder / str(number), expected[fault.overrides])
    except Exception as error:  # a fault that could not even be tried is a row of the table too
        trial = Trial(fault.name, 0.0, f"{type(error).__name__}: {error}", *[False] * len(_CHECKS))
    print(trial.fault, "good" if trial.good else f"BAD: {vars(trial)}", flush=True)
    return trial


def _table(trials: list[Trial]) -> Table:
    table = Table("fault", "s", *_CHECKS)
    for trial in trials:
        marks = [_MARKS[getattr(trial, check)] for check in _CHECKS]
        table.add_row(trial.fault, f"{trial.seconds:.1f}", *marks)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
