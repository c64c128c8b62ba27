"""One fault on one run, and everything that must be so afterwards."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from harness.report.frame import load_run
from harness.schema.record import FAILED
from tests.chaos.faults import NOBODY, OF_THE_DISK, RANK, SIGNAL, Fault, culprit
from tests.chaos.run import DEADLINE_S, GONE_S, GRACE_S, Chaotic
from tests.running import HANG_S

ENDING = ("restarts=0",)
"""The run ends with the world that was struck; without it, it goes on by itself."""


@dataclass
class Trial:
    """Results of one fault. A check that is False has failed; None means that it was not made."""

    fault: str
    seconds: float
    """From the strike to the end of the launcher, or, where the run goes on, to the next case."""
    said: str
    """What the user was told."""
    in_time: bool
    """Within the deadline and the grace, and its processes gone soon after: a figure of `make chaos`, and of no test."""
    status: bool
    named: bool
    no_orphan: bool
    loads: bool
    """Every case that was finished when the fault struck, and by the end."""
    kept: bool
    """Files of finished cases, in every table, by inode and time of change: from the strike on, and through the resume."""
    resumed: bool | None
    equal: bool | None
    """The discrepancies are an undisturbed run's, row for row."""

    @property
    def lost(self) -> list[str]:
        """Names of the checks that failed."""
        return [name for name, value in vars(self).items() if value is False]

    @property
    def good(self) -> bool:
        """True if nothing was lost, and the run ended in time."""
        return not self.lost


def undisturbed(folder: Path, overrides: tuple[str, ...] = (), deadline_s: float = DEADLINE_S) -> pd.DataFrame:
    """What the run finds when nothing happens to it."""
    run = Chaotic(folder, overrides, deadline_s=deadline_s)
    run.start()
    output, _ = run.process.communicate(timeout=HANG_S)
    assert run.process.returncode == 0, output
    return run.discrepancies()


def attempt(
    fault: Fault,
    folder: Path,
    expected: pd.DataFrame | None,
    deadline_s: float = DEADLINE_S,
    look: Callable[[Chaotic, str], None] = lambda run, output: None,
) -> Trial:
    """Strike, wait for the end, look, mend, go on, and compare; where nothing is expected, the run does not go on.

    look: called with the run, and what it printed, once it has ended.
    """
    overrides = (*ENDING, *fault.overrides)
    run = Chaotic(folder, overrides, victim=fault.victim, deadline_s=deadline_s, hasty=fault.hasty)
    with fault.around(run) if fault.around else nullcontext(lambda: None) as mend:
        run.start()
        try:
            fault.strike(run)
            trial = _ended(fault, run, look)
            mend()
            return trial if expected is None or not run.is_there else _gone_on(run, trial, expected)
        finally:
            run.close()


def _ended(fault: Fault, run: Chaotic, look: Callable[[Chaotic, str], None]) -> Trial:
    gone_on = run.go_on() if fault.goes_on else None
    status, output, ended = run.end()
    seconds = ended if gone_on is None else gone_on
    orphans, gone_s = run.orphans()
    before = run.finished() if run.is_there else {}
    look(run, output)
    return Trial(
        fault=fault.name,
        seconds=seconds,
        said=next((line for line in output.splitlines() if line.startswith("reducebench: ")), ""),
        in_time=seconds < run.deadline_s + GRACE_S and gone_s < GONE_S,
        status=status == fault.status,
        named=_named(fault, run, output),
        no_orphan=orphans == 0,
        loads=_loads(fault, run) and set(run.standing) <= set(before),
        kept=_are_kept(run.standing, before),
        resumed=None,
        equal=None,
    )


def _loads(fault: Fault, run: Chaotic) -> bool:
    """Return True if the run can be read whole; a refused run must leave no directory."""
    return not (run.is_there if fault.status == 2 else load_run(run.run_dir.path).damaged)


def _gone_on(run: Chaotic, trial: Trial, expected: pd.DataFrame) -> Trial:
    known = run.standing | run.finished()
    resumed = run.resume()
    return replace(
        trial,
        kept=trial.kept and _are_kept(known, run.finished()),
        resumed=resumed.returncode == 0 and not load_run(run.run_dir.path).missing,
        equal=run.discrepancies().equals(expected),
    )


def _are_kept(known: dict[str, tuple[int, int]], now: dict[str, tuple[int, int]]) -> bool:
    return all(now.get(name) == stamp for name, stamp in known.items())


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
    noted = _disk(fault) or fault.status == 2 or any(where in how for where in wheres for how in _ways(run))
    return culprit(fault) in output and any(where in output for where in wheres) and noted


def _ways(run: Chaotic) -> list[str]:
    """Return the ending of each culprit in failures.json, in words."""
    return [culprit["how"] for end in run.run_dir.failures() for culprit in end["culprits"]]


def _disk(fault: Fault) -> bool:
    """A full disk takes no note; and a refusal is none of what failures.json is for."""
    return fault.kind in OF_THE_DISK
