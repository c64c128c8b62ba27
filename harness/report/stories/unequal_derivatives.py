"""Text 002: "Why do PyTorch derivatives produce unequal outputs?"."""

import pandas as pd

from harness.report.frame import Run
from harness.report.stories.bit_patterns import counted, distinct_patterns, patterns
from harness.report.stories.claims import Claim, NotSeenError, Verdict, largest, seen
from harness.report.stories.drifting import drift_of_probe
from harness.report.stories.mitigations import MITIGATIONS
from harness.report.tables import Table
from harness.report.text import number

TITLE = "why PyTorch derivatives produce unequal outputs"
SMALL = 1e-6
"""Relative L2 up to which a difference is on the order of 1e-7."""


def example_runs(run: Run) -> Verdict:
    """The first example, as it is written."""
    row = seen(run, "text_examples", subject="example 1", setting="as written", quantity="raises").iloc[0]
    return not row.value, "it raises as written: " + row.text if row.value else "it runs as written"


def example_varies(subject: str, words: str) -> "Claim":
    """That repeated calls give other derivatives."""

    def test(run: Run) -> Verdict:
        runs, distinct, apart = patterns(run, "text_examples", subject, "with ")
        return distinct > 1, f"{counted(distinct)} in {runs} calls" + f", {number(apart)} apart" * (distinct > 1)

    return Claim(words, test)


def third_only_accumulates(run: Run) -> Verdict:
    """The second call over the first: 2, where nothing clears `.grad`."""
    ratio = largest(seen(run, "text_examples", subject="example 3", quantity="second call over first").value)
    runs, distinct, _ = patterns(run, "text_examples", "example 3", "with zero_grad")
    words = f"the second call gives {ratio:.12g} times the first: nothing clears .grad; cleared, {counted(distinct)}"
    return bool(ratio != 2 or distinct > 1), f"{words} in {runs} calls"


def forward_sum_is_the_cause(run: Run) -> Verdict:
    """Values and derivatives of a sum in many orders."""
    _, values, _ = patterns(run, "float_sums", "forward", "value")
    orders, derivatives, _ = patterns(run, "float_sums", "forward", "derivative")
    words = (
        f"{orders} orders of summation give {values} values of the sum and {derivatives} of its derivative: it does not enter"
    )
    return derivatives > 1, words if derivatives == 1 else words.removesuffix(": it does not enter")


def not_associative(run: Run) -> Verdict:
    """(a + b) + c against a + (b + c)."""
    share = largest(seen(run, "float_sums", quantity="share that differs").value)
    return bool(share > 0), f"{share:.0%} of random float32 triples sum to another value in the other order"


def magnitudes_lose(run: Run) -> Verdict:
    """2^25 + 1 - 2^25."""
    result = largest(seen(run, "float_sums", setting="2^25").value)
    return bool(result != 1), f"2^25 + 1 - 2^25 is {result:g} in float32"


def variation_is_small(run: Run) -> Verdict:
    """What does vary, over thread counts and batch orders; by workload."""
    rows = seen(run, "repeatability", quantity="relative_l2")
    rows = rows[rows.setting.isin(("thread counts", "batch orders"))]
    largest(rows.value)
    by_workload = rows.groupby(rows.subject.astype(str).str.split(":").str[0]).value.max()
    if by_workload.max() == 0:
        raise NotSeenError("nothing varied, over thread counts or batch orders")
    worst = ", ".join(f"{number(apart)} on {workload}" for workload, apart in by_workload.items())
    words = f"over thread counts and batch orders up to {worst} (relative L2); the order of 1e-7 is below {SMALL:g}"
    return bool(by_workload.max() < SMALL), words


def runs_vary(run: Run) -> Verdict:
    """The same gradient again, in one process and in another one."""
    runs, distinct, apart = patterns(run, "repeatability", "", "in one process")
    across = distinct_patterns(run, "across processes")
    furthest = f", {number(apart)} apart" if distinct > 1 else ""
    words = f"{counted(distinct)} in {runs} runs in one process, {across} across processes{furthest}"
    return max(distinct, across) > 1, f"{words} ({run.environment.get('device')})"


def order_matters(run: Run) -> Verdict:
    """Batch orders and thread counts."""
    _, orders, apart = patterns(run, "repeatability", "", "batch orders")
    _, threads, threads_apart = patterns(run, "repeatability", "", "thread counts")
    words = f"batch orders give up to {orders} bit patterns, {number(apart)} apart; "
    words += f"thread counts {threads}, {number(threads_apart)} apart"
    return orders > 1 or threads > 1, words


def never_eliminated(run: Run) -> Verdict:
    """Runs with everything held equal, the thread count included."""
    runs, distinct, _ = patterns(run, "repeatability", "", "in one process")
    across = max(distinct, distinct_patterns(run, "across processes"))
    words = f"with threads, order and seeds held equal {counted(across)} in {runs} runs of each process"
    return across > 1, words + (": nothing is left" if across == 1 else "")


def variation_matters(run: Run) -> Verdict:
    """Two runs after some optimizer steps."""
    return drift_of_probe(run, "repeatability", "two runs")


CLAIMS = [
    Claim("example 1 runs as it is written", example_runs),
    example_varies("example 1", "example 1: equal calls often give unequal derivatives of a scalar polynomial"),
    example_varies("example 2", "example 2: so do element-wise polynomials"),
    Claim("example 3: a linear layer's gradients differ slightly despite the same input", third_only_accumulates),
    Claim("the order of the forward sum is the main cause", forward_sum_is_the_cause),
    Claim("floating-point addition is not associative", not_associative),
    Claim("adding numbers of very different magnitude loses precision", magnitudes_lose),
    Claim("gradients of identical batches diverge slightly between runs", runs_vary),
    Claim("the order of summation, where it does change, changes the gradient", order_matters),
    Claim("the differences are minuscule, on the order of 1e-7 or smaller in float32", variation_is_small),
    Claim("these variations can never be entirely eliminated", never_eliminated),
    *MITIGATIONS,
    Claim("(asked) it matters: runs that differ in thread count or batch order train to other losses", variation_matters),
]


def tables(run: Run) -> list[Table]:
    """The text's three examples, and what varies in models that could."""
    return [*_examples(run), *_repeated(run)]


def _examples(run: Run) -> list[Table]:
    try:
        rows = seen(run, "text_examples")
    except NotSeenError:
        return []
    rows = rows[rows["rank"] == 0]
    wide = rows.groupby([rows.subject.astype(str), rows.setting], sort=False).apply(_said, include_groups=False)
    return [
        Table(
            "The text's examples", wide.reset_index(name="what came out").rename(columns={"subject": "example", "setting": ""})
        )
    ]


def _said(rows: pd.DataFrame) -> str:
    return ", ".join(
        f"{quantity}: {text or number(value)}"
        for quantity, value, text in zip(rows.quantity, rows.value, rows.text, strict=True)
    )


def _repeated(run: Run) -> list[Table]:
    try:
        rows = seen(run, "repeatability", quantity="distinct")
    except NotSeenError:
        return []
    rows = seen(run, "repeatability")
    rows = rows[(rows["rank"] == 0) & rows.quantity.isin(("runs", "distinct", "relative_l2"))]
    workload = rows.subject.astype(str).str.split(":").str[0].rename("workload")
    wide = rows.groupby([workload, rows.setting, rows.quantity], sort=False).value.first().unstack().reset_index()
    table = wide.assign(
        runs=wide.runs.map("{:.0f}".format),
        distinct=wide.distinct.map("{:.0f}".format),
        relative_l2=wide.relative_l2.map(lambda value: "" if pd.isna(value) else number(value)),
        cause=wide.setting.map(CAUSES).fillna("").where(wide.distinct > 1, "nothing varies"),
    )
    columns = ["workload", "setting", "runs", "distinct", "relative_l2", "cause"]
    names = {"setting": "what changes", "distinct": "bit patterns", "relative_l2": "largest relative L2"}
    return [Table("The same gradient again, float32", table[columns].rename(columns=names))]


CAUSES = {
    "in one process": "algorithms that are not deterministic",
    "across processes": "another machine code path, or another library",
    "thread counts": "sums are cut into other parts",
    "batch orders": "sums are taken in another order",
    "dropout, not seeded": "random numbers",
    "dropout, seeded": "algorithms that are not deterministic",
    "default algorithms": "algorithms that are not deterministic",
    "deterministic algorithms": "deterministic is not what they are called",
}
"""What it is when more than one bit pattern is seen."""
