"""An explanation as the rows of its tables, and as what a person reads first."""

from collections.abc import Iterator, Sequence
from dataclasses import fields

from harness.probes.diagnosis.explain import Explanation
from harness.schema.case import Case
from harness.schema.record import VERDICT, Diagnosis, Finding, Floor, Stage, Weight


def rows_of(found: Explanation, parameters: Sequence[str]) -> Iterator[Diagnosis | Weight | Stage | Floor]:
    """On rank 0. The writer knows of which case they are."""
    yield Diagnosis(**{field.name: getattr(found, field.name) for field in fields(Diagnosis)})
    yield from found.weights
    for name, step in found.ladder.steps if found.ladder else []:
        yield Stage("", name, step.share, step.length, step.l2)
    told = zip(["", *parameters], found.noises, found.lengths, strict=True) if found.noises else []
    for name, noise, length in told:
        yield Floor("", name, length, noise.permutation, noise.probable, noise.worst, noise.kernels)


def verdicts(case: Case, found: Explanation) -> Iterator[Finding]:
    """What is wrong, if anything is, and what to do about it."""
    if not found.clean:
        yield Finding(case.case_id, VERDICT, str(found), found.distance)
