"""Text 001: "How to obtain gradient sums immediately after loss.backward()?"."""

import pandas as pd

from harness.report.frame import Run
from harness.report.staleness import reads
from harness.report.stories.claims import Claim, NotSeenError, Verdict, largest, seen, untestable
from harness.report.stories.drifting import drift_of_probe
from harness.report.tables import Table
from harness.report.text import number
from harness.schema.record import PREDICTED, REFERENCE

TITLE = "how to obtain gradient sums immediately after loss.backward()"
CONTROL = ".grad after backward"
DEEP = ".grad after backward of a deep, branching graph"
BLOCKING = "all_reduce, then read"
ASYNC, WAITED = (f"all_reduce(async_op=True), read {when} wait" for when in ("before", "after"))
EXAMPLE = "the text's x**2 and sin(x)"
ROUNDING = 1e-15
"""Of sums of a few float64 numbers, relative."""


def counted(run: Run, access: str) -> pd.DataFrame:
    """Reads of an access. Raises NotSeenError."""
    rows = seen(run, "staleness", subject=access)
    return reads(rows[rows.subject.astype(str) == access])


def stale(access: str, words: str) -> "Claim":
    """That reads of this kind may be stale or torn."""

    def test(run: Run) -> Verdict:
        rows = counted(run, access)
        bad = int((rows.stale + rows.torn).sum())
        delayed = rows[rows.setting.str.startswith("delayed")]
        with_delay = f", {int((delayed.stale + delayed.torn).sum())} of {int(delayed.trials.sum())} of them under a delay"
        return bad > 0, f"{bad} of {int(rows.trials.sum())} reads were stale or torn{with_delay}"

    return Claim(words, test)


def fresh(access: str, words: str) -> "Claim":
    """That no read of this kind is stale or torn."""

    def test(run: Run) -> Verdict:
        rows = counted(run, access)
        bad = int((rows.stale + rows.torn).sum())
        return bad == 0, f"{bad} of {int(rows.trials.sum())} reads were stale or torn"

    return Claim(words, test)


def cpu_needs_no_synchronization(run: Run) -> Verdict:
    """Reads after backward on the CPU."""
    if run.environment.get("device") != "cpu":
        raise NotSeenError("this run is not on the CPU")
    return fresh(CONTROL, "").test(run)


def synchronize_is_needed(run: Run) -> Verdict:
    """On the same stream, without a synchronize."""
    if run.environment.get("device") != "cuda":
        raise NotSeenError("this run is on the CPU, where torch.cuda.synchronize() has nothing to wait for")
    holds, words = stale(CONTROL, "").test(run)
    return holds, f"on the same stream and without a synchronize {words}"


def summed_is_right(run: Run) -> Verdict:
    """The text's second example against 2x + cos(x)."""
    exact = seen(run, "several_losses", subject=EXAMPLE, setting="float64: the sum - 2x + cos(x)", quantity="relative_l2")
    apart = largest(exact.value)
    return apart <= ROUNDING, f"{number(apart)} (relative L2) from 2x + cos(x) in fp64"


def other_ways_differ(run: Run) -> Verdict:
    """Each in turn, one call, by hand; of the example and of the models, in float64."""
    worst, single = (largest(_between_ways(run, dtype)) for dtype in ("float64", "float32"))
    words = f"any two of four ways are within {number(worst)} in fp64, {number(single)} in fp32"
    return worst > 1e-12, words if worst > 1e-12 else f"{words}: rounding at most"


def _between_ways(run: Run, dtype: str) -> pd.Series:
    rows = seen(run, "several_losses", setting=dtype, quantity="relative_l2")
    return rows[~rows.setting.str.contains("cos")].value


def sums_over_ranks(run: Run) -> Verdict:
    """SUM against the sum of every rank's own."""
    apart = largest(seen(run, "sum_over_ranks", quantity="relative_l2 from the sum over ranks").value)
    return apart <= ROUNDING, f"{number(apart)} (relative L2) from the sum of all ranks' gradients"


def sum_is_the_gradient(run: Run) -> Verdict:
    """Of a mean loss, which is what a single process would have."""
    scale = largest(seen(run, "sum_over_ranks", quantity="scale against the mean over ranks").value)
    ranks = int(largest(seen(run, "sum_over_ranks", quantity="ranks").value))
    return abs(scale - 1) < 1e-12, f"on {ranks} ranks SUM is {scale:.12g} times the mean over ranks: divide by {ranks}"


def dividing_by_ranks_is_enough(run: Run) -> Verdict:
    """Rank means where ranks count unequal numbers of terms."""
    rows = _against(run, REFERENCE, fault="none", normalization="rank_mean")
    uneven = rows[rows.max_rank_denominator > rows.min_rank_denominator]
    if uneven.empty:
        raise NotSeenError("ranks count the same number of terms in every case of this run")
    right = largest(_against(run, REFERENCE, fault="none", normalization="global_mean").relative_l2)
    worst = largest(uneven.relative_l2)
    words = (
        f"where ranks count unequal numbers of terms the mean over ranks is {number(worst)} from the gradient of the whole "
        f"batch; summed over one denominator of all ranks it is within {number(right)}"
    )
    return bool(worst < 1e-5), words


def ways_matter(run: Run) -> Verdict:
    """The four ways to several losses, after some optimizer steps."""
    return drift_of_probe(run, "several_losses", "two ways to the gradient of two losses")


CLAIMS = [
    stale(CONTROL, "reading .grad immediately after backward() may give incomplete or stale values"),
    stale(DEEP, "complex graphs with branching or depth delay the backward pass past its return"),
    Claim("torch.cuda.synchronize() is needed before .grad is read", synchronize_is_needed),
    Claim(
        "for CPU computations this synchronization is less critical: no read is stale without it", cpu_needs_no_synchronization
    ),
    Claim(
        "barriers of the distributed framework guarantee the synchronized sum",
        untestable(
            "no number of fresh reads proves a guarantee; what is documented to order an asynchronous sum is its wait()"
        ),
    ),
    stale(ASYNC, "asynchronous operations may be read before they are complete (async_op=True, before wait)"),
    fresh(WAITED, "waiting for them makes the sum accessible (async_op=True, after wait)"),
    fresh(BLOCKING, "all_reduce() aggregates before the result is accessible"),
    Claim("two losses summed before backward() give the sum of their gradients", summed_is_right),
    Claim("this is fundamentally different from processing the losses one by one and summing by hand", other_ways_differ),
    Claim("all_reduce with SUM sums the gradients of all ranks", sums_over_ranks),
    Claim("and the sum, as it is, is the gradient of the distributed training", sum_is_the_gradient),
    Claim(
        "(ours) dividing it by the number of ranks always makes it the gradient of the whole batch", dividing_by_ranks_is_enough
    ),
    Claim("(asked) it matters which way several losses are summed", ways_matter),
]


def tables(run: Run) -> list[Table]:
    """What SUM must be divided by. Stale reads and the ways to several losses have tables of their own."""
    try:
        missing = _against(run, REFERENCE, fault="missing_division")
        predicted = _against(run, PREDICTED, fault="missing_division").set_index("case_id").relative_l2
    except NotSeenError:
        return []
    rows = pd.DataFrame(
        {
            "workload": missing.workload.astype(str),
            "reduction": missing.reduction.astype(str),
            "normalization": missing.normalization.astype(str),
            "terms of a rank": [_terms(row) for row in missing.to_dict("records")],
            "SUM, as it is": missing.relative_l2.map(number),
            "best scale": missing.scale.map("{:.6g}".format),
            "left after it": missing.scaled_residual.map(number),
            "from prediction": missing.case_id.map(predicted).map(number),
        }
    )
    note = (
        "fault=missing_division: the sum over ranks without the division it needs. Relative L2 from the reference, the factor "
        "that explains most of it, and what no factor explains: under rank_mean, that ranks count unequal numbers of terms."
    )
    return [Table("What SUM must be divided by", rows, note)]


def _terms(row: "dict[str, object]") -> str:
    return f"{row['min_rank_denominator']:g} to {row['max_rank_denominator']:g}"


def _against(run: Run, against: str, **axes: str) -> pd.DataFrame:
    rows = run.discrepancies.assign(case_id=run.discrepancies.case_id.astype(str))
    rows = rows[(rows.against == against) & (rows.parameter == "") & (rows["rank"] == 0)]
    found = rows.merge(run.cases, on="case_id")
    for axis, option in axes.items():
        found = found[found[axis].astype(str) == option]
    if found.empty:
        raise NotSeenError("this run has no case with " + ", ".join(f"{axis}={option}" for axis, option in axes.items()))
    return found
