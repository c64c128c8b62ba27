"""An explanation as the rows of its tables, and as what a person reads first."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import nan

from harness.probes.diagnosis.explain import Explanation
from harness.schema.case import Case
from harness.schema.record import VERDICT, Diagnosis, Finding, Floor, Step, Weight


def rows_of(found: Explanation, parameters: Sequence[str]) -> Iterator[Diagnosis | Weight | Step | Floor]:
    """On rank 0. The writer knows of which case they are."""
    ladder = found.ladder
    yield Diagnosis(
        case_id="",
        verdict=found.verdict,
        cause=found.cause,
        statement=found.statement,
        advice=found.advice,
        confidence=found.confidence,
        explained=found.explained,
        distance=found.distance,
        floor=found.floor,
        exact_distance=found.exact_distance,
        factor=found.factor,
        rank=found.rank,
        sample=found.sample,
        replayed=ladder.replayed if ladder else nan,
        proved=bool(ladder and ladder.proved),
        orders=" | ".join(ladder.orders) if ladder else "",
        independent=found.independent,
        condition=found.condition,
        residual=found.residual,
        seconds=found.seconds,
        exact_seconds=found.exact_seconds,
    )
    yield from (replace(weight, case_id="") for weight in found.weights)
    for name, step in ladder.steps if ladder else []:
        yield Step("", name, step.share, step.length, step.l2)
    told = zip(["", *parameters], found.noises, found.lengths, strict=True) if found.noises else []
    for name, noise, length in told:
        yield Floor("", name, length, noise.permutation, noise.probable, noise.worst, noise.kernels)


def verdicts(case: Case, found: Explanation) -> Iterator[Finding]:
    """What is wrong, if anything is, and what to do about it."""
    if not found.clean:
        yield Finding(case.case_id, VERDICT, str(found), found.distance)
