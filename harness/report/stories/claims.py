"""Claims and their verdicts, computed from what a run has measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.report.distance import as_distance
from harness.report.frame import Run
from harness.report.tables import Table
from harness.report.text import number

HOLDS, FAILS, UNTESTABLE = "holds", "does not hold", "not testable here"


class NotSeenError(Exception):
    """The run has not measured what a claim rests on; the message says why."""


Verdict = tuple[bool, str]
"""Whether the claim holds, and the evidence in one sentence."""


@dataclass(frozen=True)
class Claim:
    """What a text says, and the test of it. `test` raises NotSeenError where the run cannot tell."""

    words: str
    test: Callable[[Run], Verdict]


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: str
    verdict: str
    evidence: str


def judge(claim: Claim, run: Run) -> Judged:
    """The verdict of this run."""
    try:
        holds, evidence = claim.test(run)
    except NotSeenError as reason:
        return Judged(claim.words, UNTESTABLE, str(reason))
    return Judged(claim.words, HOLDS if holds else FAILS, evidence)


def largest(numbers: pd.Series) -> float:
    """Raises NotSeenError where there is none, or where one of them is no number that a verdict can rest on."""
    if numbers.empty:
        raise NotSeenError("this run has not measured it")
    if not np.isfinite(numbers.astype(float)).all():
        raise NotSeenError("what it rests on is NaN or infinite in this run")
    return float(numbers.max())


def untestable(reason: str) -> Callable[[Run], Verdict]:
    """The test of a claim that no run of ours can test."""

    def test(run: Run) -> Verdict:
        raise NotSeenError(reason)

    return test


def claims_table(title: str, claims: Sequence[Claim], run: Run) -> Table:
    """A row a claim."""
    rows = [judge(claim, run) for claim in claims]
    return Table(f"Claims: {title}", pd.DataFrame([(row.claim, row.verdict, row.evidence) for row in rows], columns=_COLUMNS))


def matters(run: Run, parameters: pd.Series, losses: pd.Series, others: pd.Series, what: str) -> Verdict:
    """Whether optimizer steps have led to other losses. A loss that is no number any more is infinitely far away."""
    apart = float(as_distance(((losses - others) / others).abs()).max())
    furthest = float(as_distance(parameters).max())
    words = (
        f"after {run.config.drift.steps} optimizer steps {what} have parameters up to {number(furthest)} apart (relative L2) "
        f"and losses up to {number(apart)}, relative; above {MATTERS:g} it matters"
    )
    return apart > MATTERS, words


NO_STEPS = "this run takes no optimizer steps: set drift.steps"
MATTERS = 1e-3
"""Relative difference of two losses from which we say that it matters."""
_COLUMNS = ["the text says", "verdict", "evidence"]


def seen(run: Run, probe: str, *, subject: str = "", setting: str = "", quantity: str = "") -> pd.DataFrame:
    """Observations of a probe: of this quantity, where given, with these words in subject and setting. Raises NotSeenError."""
    rows = run.observations
    if len(rows):
        rows = rows[(rows.probe.astype(str) == probe) & ((rows.quantity == quantity) | (not quantity))]
        for column, words in (("subject", subject), ("setting", setting)):
            rows = rows[rows[column].astype(str).str.contains(words, regex=False)]
    if len(rows):
        return rows
    raise NotSeenError(_why_not(run, probe, subject))


def _why_not(run: Run, probe: str, subject: str) -> str:
    asked = run.probes
    if len(asked):
        asked = asked[(asked.probe == probe) & asked.subject.str.contains(subject, regex=False) & (asked.status != "ok")]
    if len(asked):
        return str(asked.reason.iloc[0])
    return f"this run did not ask: select probe=[{probe}]"
