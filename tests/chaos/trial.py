"""One fault on one run, and everything that must be so afterwards."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.report.frame import load_run
from harness.schema.record import FAILED
from tests.chaos.faults import NOBODY, OF_THE_DISK, RANK, SIGNAL, Fault, culprit
from tests.chaos.run import DEADLINE_S, GRACE_S, Chaotic

ENDING = ("restarts=0",)
"""The run ends with the world that was struck; without it, it goes on by itself."""


@dataclass
class Trial:
    """What was seen of one fault. Every field but the first three must be true."""

    fault: str
    seconds: float
    """From the strike to the end of the launcher, or, where the run goes on, to the next case."""
    said: str
    """What the user was told."""
    in_time: bool
    status: bool
    named: bool
    no_orphan: bool
    loads: bool
    """Every case that was finished when the fault struck, and by the end."""
    kept: bool
    """Files of finished cases, in every table, by inode and time of change: from the strike on, and through the resume."""
    resumed: bool
    equal: bool
    """The discrepancies are an undisturbed run's, row for row."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost."""
        return all(value is True for value in vars(self).values() if isinstance(value, bool))


def undisturbed(folder: Path, overrides: tuple[str, ...] = ()) -> pd.DataFrame:
    """What the run finds when nothing happens to it."""
    run = Chaotic(folder, overrides)
    run.start()
    output, _ = run.process.communicate(timeout=600)
    assert run.process.returncode == 0, output
    return run.discrepancies()


def attempt(fault: Fault, folder: Path, expected: pd.DataFrame) -> Trial:
    """Strike, wait for the end, look, mend, go on, and compare."""
    run = Chaotic(folder, (*ENDING, *fault.overrides), victim=fault.victim)
    with fault.around(run) if fault.around else nullcontext(lambda: None) as mend:
        run.start()
        try:
            fault.strike(run)
            return _seen(fault, run, expected, mend)
        finally:
            run.close()


def _seen(fault: Fault, run: Chaotic, expected: pd.DataFrame, mend: Callable[[], None]) -> Trial:
    gone_on = run.go_on() if fault.goes_on else None
    status, output, ended = run.end()
    seconds = ended if gone_on is None else gone_on
    orphans = run.orphans()
    before = run.finished()
    loaded = load_run(run.run_dir.path)
    named = _named(fault, run, output)
    mend()
    resumed = run.resume()
    after = run.finished()
    return Trial(
        fault=fault.name,
        seconds=seconds,
        said=next((line for line in output.splitlines() if line.startswith("reducebench: ")), ""),
        in_time=seconds < DEADLINE_S + GRACE_S,
        status=status == fault.status,
        named=named,
        no_orphan=orphans == 0,
        loads=not loaded.damaged and set(run.standing) <= set(before),
        kept=all(after.get(name) == known for name, known in (run.standing | before).items()),
        resumed=resumed.returncode == 0 and not load_run(run.run_dir.path).missing,
        equal=run.discrepancies().equals(expected),
    )


def _named(fault: Fault, run: Chaotic, output: str) -> bool:
    """The rank, the host, the case and the phase, on the terminal and in the run directory; or the signal."""
    if fault.names == NOBODY:
        return True
    if fault.names != RANK:
        return ("ended by SIG" if fault.names == SIGNAL else "torchrun was ended by SIGKILL") in output
    wheres = [f"phase {phase}" for phase in fault.felt_in]
    if fault.goes_on:
        loaded = load_run(run.run_dir.path)
        failed = [reason for table in (loaded.cases, loaded.probes) for reason in table.reason[table.status == FAILED]]
        return len(failed) == 1 and failed[0].startswith(f"{culprit(fault)} on ") and wheres[0] in failed[0]
    told: list[dict[str, Any]] = [culprit for end in run.run_dir.ends() for culprit in end["culprits"]]
    noted = _disk(fault) or fault.status == 2 or any(where in one["how"] for where in wheres for one in told)
    return culprit(fault) in output and any(where in output for where in wheres) and noted


def _disk(fault: Fault) -> bool:
    """A full disk takes no note; and a refusal is none of what ends.json is for."""
    return fault.kind in OF_THE_DISK
