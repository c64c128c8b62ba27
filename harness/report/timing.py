"""The times of a run, case by case: a phase's time is the slowest rank's in each iteration; then the statistics over
iterations."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd

from harness.report.case_times import CaseTimes
from harness.report.frame import Run
from harness.report.statistics import Summary
from harness.schema.record import OK

_PHASES = ["case_id", "clock", "phase", *(field.name for field in fields(Summary))]
_RANKS = ["case_id", "rank", "step_s", "slowest", "waits_s", "last"]
_CASES = ["case_id", "clock", "overlap", "launch_spread"]
_STEPS = ["case_id", "launch", "visit", "step_s"]


@dataclass(frozen=True)
class Timing:
    """Of every measured case."""

    phases: pd.DataFrame
    """One row a case, clock and phase, derived ones included; see Summary."""
    ranks: pd.DataFrame
    """One row a case and rank; see `CaseTimes.ranks`."""
    cases: pd.DataFrame
    """One row a case: the clock that sees its work, the share of its communication that is hidden, and by how much, as a share
    of the median, the median steps of its launches scatter (standard deviation; NaN of one launch)."""
    steps: pd.DataFrame
    """One row a case and measured iteration, in the order in which they ran: seconds of the slowest rank's step, by the clock
    that sees its work."""


def timing(run: Run) -> Timing:
    """Put the times of the measured cases together. Samples are reduced one case at a time."""
    times = {str(case_id): run.times(case_id) for case_id in run.cases.case_id[run.cases.status == OK]}
    return Timing(
        phases=pd.DataFrame([row for case_id, own in times.items() for row in _phases(case_id, own)], columns=_PHASES),
        ranks=_together({case_id: own.ranks for case_id, own in times.items()}, _RANKS),
        cases=pd.DataFrame([_case(case_id, own) for case_id, own in times.items()], columns=_CASES),
        steps=_together({case_id: own.steps() for case_id, own in times.items()}, _STEPS),
    )


def _phases(case_id: str, times: CaseTimes) -> Iterator[dict[str, Any]]:
    for (clock, phase), summary in times.summaries.items():
        yield {"case_id": case_id, "clock": clock, "phase": phase, **asdict(summary)}


def _case(case_id: str, times: CaseTimes) -> tuple[str, str, float, float]:
    return case_id, times.clock, times.overlap, times.launch_spread


def _together(frames: dict[str, pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    """Concatenate a frame for each case."""
    named = [frame.assign(case_id=case_id) for case_id, frame in frames.items()]
    return pd.concat(named, ignore_index=True)[columns] if named else pd.DataFrame(columns=columns)
