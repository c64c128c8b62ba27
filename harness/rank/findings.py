"""What the numbers of a case mean, in one sentence each, with the number it rests on."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from harness.rank.compare import Apart
from harness.rank.theory import acts, other_function
from harness.rank.trial import Measured, Trial
from harness.schema.case import USUAL, Case
from harness.schema.record import RANK_0, REFERENCE, Discrepancy, Finding

COUPLED = 1e-9
"""Two float64 gradients of one function are equal to about 1e-15; batch statistics move them by more than 1e-3."""


def findings(case: Case, trial: Trial, measured: Measured, rows: Sequence[Discrepancy], apart: Apart) -> Iterator[Finding]:
    """Verdicts on a case; `apart` is what lies between its yardsticks."""
    whole = {(row.against, row.rank): row.metrics for row in rows if row.parameter == ""}
    from_reference = furthest_from_reference(rows)
    yield from _nonfinite(case, rows)
    yield from _ranks_disagree(case, whole)
    if case.fault != "none":
        yield _fault(case, trial, from_reference)
    coupling = apart.references.relative_l2 if apart.references else 0.0
    if coupling > COUPLED:
        yield Finding(case.case_id, "batch_coupling", _coupling(case.workload, trial.material.coupling, coupling), coupling)
    other = other_function(trial.cut)
    if other:
        yield Finding(case.case_id, "other_function", _other_function(case, trial, other, from_reference), from_reference)
    if _loses(trial):
        yield Finding(case.case_id, "lossy", _lossy(case, from_reference), from_reference)
    if trial.second_forward:
        yield Finding(case.case_id, "second_forward", _second_forward(case), float("nan"))
    if measured.not_queued:
        words = f"there is no device time without launches (clock cuda_queued): {measured.not_queued}"
        yield Finding(case.case_id, "not_queued", words, float("nan"))
    yield from _unequal_denominators(case, trial, from_reference)
    for message in measured.tolerated_warnings:
        yield Finding(case.case_id, "performance_warning", _slow_path(case, message), float("nan"))


def furthest_from_reference(rows: Sequence[Discrepancy]) -> float:
    """Relative L2 of the rank whose whole gradient is furthest from its reference; infinite if a rank has NaN.

    Where ranks share their gradient, rank 0 has the one row.
    """
    distances = [row.relative_l2 for row in rows if row.against == REFERENCE and row.parameter == ""]
    return max(math.inf if math.isnan(distance) else distance for distance in distances)


def changed_settings(case: Case, changed: Mapping[str, Sequence[int]]) -> Iterator[Finding]:
    """Settings of the process that the case's own code changed, each with the ranks that saw it: they were put back."""
    if changed:
        told = [f"{setting} (rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))})" for setting, ranks in changed.items()]
        words = (
            f"code of {case.case_id} changed {'; '.join(told)}: it was put back, so that no other case depends on it; "
            "an option or threads_per_rank sets what all of a case shall run under"
        )
        yield Finding(case.case_id, "changed_settings", words, float(len(changed)))


def _fault(case: Case, trial: Trial, distance: float) -> Finding:
    planted = f"the fault {case.fault} is planted"
    if acts(trial.cut, trial.iterations):
        return Finding(case.case_id, "fault", f"{planted}, and acts on reduction={case.reduction}", distance)
    words = f"{planted}, and does nothing to reduction={case.reduction}: every sample weighs what it should"
    return Finding(case.case_id, "fault_without_effect", words, distance)


def _nonfinite(case: Case, rows: Sequence[Discrepancy]) -> Iterator[Finding]:
    counted = [(row, row.nonfinite) for row in rows if row.against == REFERENCE]
    bad = [(row, count) for row, count in counted if count]
    if bad:
        where = ", ".join(dict.fromkeys(row.parameter for row, _ in bad if row.parameter))
        most = max(count for _, count in bad)
        inside = f", in {where}" if where else ""
        yield Finding(case.case_id, "nonfinite", f"{most:.0f} elements of the gradient are NaN or Inf{inside}", most)


def _ranks_disagree(case: Case, whole: dict[tuple[str, int], dict[str, float]]) -> Iterator[Finding]:
    for (against, rank), metrics in whole.items():
        if against == RANK_0 and not metrics["bitwise_equal"]:
            share = metrics["mismatched_fraction"]
            words = f"rank {rank} does not hold rank 0's bits after the aggregation: {share:.2%} of the elements differ"
            yield Finding(case.case_id, "ranks_disagree", words, share)


_COUPLED = {
    "BatchNorm": "each rank normalizes by its own shard's statistics",
    "dropout": "each rank draws its own masks",
}
"""What ranks do by themselves that one rank would do otherwise."""
_BY_ITSELF = {"BatchNorm": "BatchNorm normalizes each by its own statistics", "dropout": "dropout draws new masks for each"}


def _coupling(workload: str, kinds: Sequence[str], apart: float) -> str:
    distance = f"their exact gradients are {apart:.1e} apart (relative L2)"
    if not kinds:  # functional dropout, random numbers in forward, statistics that the model itself takes over the batch
        return (
            f"samples of {workload} influence each other, and no module of it is a BatchNorm or a dropout: the ranks' shards "
            f"are another function than the full batch on one rank; {distance}; look for random numbers, and for statistics "
            "over the batch, in the model's forward"
        )
    return (
        f"{workload} has {' and '.join(kinds)}: {' and '.join(_COUPLED[kind] for kind in kinds)}, which is another "
        f"function than the full batch on one rank; {distance}"
    )


def _other_function(case: Case, trial: Trial, other: str, distance: float) -> str:
    if any(trial.parts.reduction.splits(len(shard)) for shard in trial.cut.shards()):
        how = f"{case.reduction} shows {case.workload} parts of the batch by themselves, and {_BY_ITSELF[other]}"
    else:
        how = f"{case.reduction} takes a second forward under {case.aggregation}, for which {other} draws new masks"
    return f"{how}: another function{_away(case, distance)}"


def _loses(trial: Trial) -> bool:
    """Whether what is sent has less precision, or less range, than the gradient."""
    own = torch.finfo(trial.parts.precision.parameter_dtype)
    sent = [torch.finfo(dtype) for dtype in (trial.parts.communication.dtype, trial.parts.aggregation.sends) if dtype]
    return trial.parts.aggregation.lossy or any(one.eps > own.eps or one.max < own.max for one in sent)


def _lossy(case: Case, distance: float) -> str:
    dtype = "" if case.communication == USUAL["communication"] else f" with communication={case.communication}"
    return f"{case.aggregation}{dtype} rounds or drops what it sends{_away(case, distance)}"


def _second_forward(case: Case) -> str:
    return (
        f"{case.reduction} takes a second forward under {case.aggregation}, which communicates only in a backward whose own "
        "forward was made to: the time includes it"
    )


def _slow_path(case: Case, message: str) -> str:
    warned = message.split("Please file")[0].strip()
    return (
        f'{case.reduction} on {case.workload} takes a slow path of torch, and its times include that; torch warns: "{warned}"'
    )


def _away(case: Case, distance: float) -> str:
    """The distance, where no planted fault has its share in it."""
    if case.fault != "none":
        return ""
    return f", {distance:.1e} from the reference (relative L2)" if math.isfinite(distance) else ", and the result is not finite"


def _unequal_denominators(case: Case, trial: Trial, distance: float) -> Iterator[Finding]:
    counts = trial.cut.counts()
    if len(set(counts)) == 1 or not trial.parts.aggregation.spans_ranks:
        return
    spread = f"ranks count between {min(counts):g} and {max(counts):g} terms of {case.workload}'s loss"
    own, total = trial.parts.normalization.denominator(min(counts), sum(counts)), sum(counts)
    if own == total:
        words = f"{spread}; {case.normalization} weighs every term the same, as the mean of the ranks' own means would not"
    else:
        words = (
            f"{spread}; {case.normalization} weighs the terms of a short rank more, as one mean over all terms "
            f"would not{_away(case, distance)}"
        )
    yield Finding(case.case_id, "unequal_denominators", words, max(counts) / min(counts) if min(counts) else float("inf"))
