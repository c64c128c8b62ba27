"""Text 002: "Why do PyTorch derivatives produce unequal outputs?"."""

import pandas as pd

from harness.report.frame import Run
from harness.report.stories.claims import Claim, NotSeenError, Verdict, largest, seen, untestable
from harness.report.stories.drifting import drift_of_probe
from harness.report.tables import Table
from harness.report.text import number

TITLE = "why PyTorch derivatives produce unequal outputs"
SINGLE = 1e-5
"""Relative L2 in float32: rounding of a gradient stays below it."""


def patterns(run: Run, probe: str, subject: str, setting: str) -> tuple[int, int, float]:
    """The fewest runs, the most distinct bit patterns, and the largest relative L2 that was seen."""
    rows = {
        q: seen(run, probe, subject=subject, setting=setting, quantity=q).value for q in ("runs", "distinct", "relative_l2")
    }
    return int(rows["runs"].min()), int(rows["distinct"].max()), largest(rows["relative_l2"])


def example_runs(run: Run) -> Verdict:
    """The first example, as it is written."""
    row = seen(run, "text_examples", subject="example 1", setting="as written", quantity="raises").iloc[0]
    return not row.value, "it raises as written: " + row.text if row.value else "it runs as written"


def example_varies(subject: str, words: str) -> "Claim":
    """That repeated calls give other derivatives."""

    def test(run: Run) -> Verdict:
        runs, distinct, apart = patterns(run, "text_examples", subject, "with ")
        return distinct > 1, f"{distinct} bit pattern{'s' * (distinct > 1)} in {runs} calls" + f", {number(apart)} apart" * (
            distinct > 1
        )

    return Claim(words, test)


def third_only_accumulates(run: Run) -> Verdict:
    """The second call over the first: 2, where nothing clears `.grad`."""
    ratio = seen(run, "text_examples", subject="example 3", quantity="second call over first").value.max()
    runs, distinct, _ = patterns(run, "text_examples", "example 3", "with zero_grad")
    words = f"the second call gives {ratio:.12g} times the first: nothing clears .grad; cleared, {distinct} bit pattern"
    return bool(ratio != 2 or distinct > 1), f"{words}{'s' * (distinct > 1)} in {runs} calls"


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
    share = seen(run, "float_sums", quantity="share that differs").value.max()
    return bool(share > 0), f"{share:.0%} of random float32 triples sum to another value in the other order"


def magnitudes_lose(run: Run) -> Verdict:
    """2^25 + 1 - 2^25."""
    result = seen(run, "float_sums", setting="2^25").value.max()
    return bool(result != 1), f"2^25 + 1 - 2^25 is {result:g} in float32"


def variation_is_small(run: Run) -> Verdict:
    """What does vary: thread counts and batch orders."""
    found = [patterns(run, "repeatability", "", setting) for setting in ("thread counts", "batch orders")]
    worst = max(apart for _, _, apart in found)
    if max(distinct for _, distinct, _ in found) == 1:
        raise NotSeenError("nothing varied, over thread counts or batch orders")
    words = f"over thread counts and batch orders float32 gradients are up to {number(worst)} apart (relative L2)"
    return worst < SINGLE, f"{words}; small is below {SINGLE:g}"


def runs_vary(run: Run) -> Verdict:
    """The same gradient again, in one process and in another one."""
    runs, distinct, apart = patterns(run, "repeatability", "", "in one process")
    words = f"{distinct} bit pattern{'s' * (distinct > 1)} in {runs} runs in one process"
    try:
        across = seen(run, "repeatability", setting="across processes", quantity="distinct").value.max()
        words += f", {across:.0f} across processes"
    except NotSeenError:
        across = 1
    return distinct > 1 or across > 1, words + f", {number(apart)} apart" * (
        distinct > 1
    ) + f" ({run.environment.get('device')})"


def order_matters(run: Run) -> Verdict:
    """Batch orders and thread counts."""
    _, orders, apart = patterns(run, "repeatability", "", "batch orders")
    _, threads, threads_apart = patterns(run, "repeatability", "", "thread counts")
    words = f"batch orders give up to {orders} bit patterns, {number(apart)} apart; "
    words += f"thread counts {threads}, {number(threads_apart)} apart"
    return orders > 1 or threads > 1, words


def seeding_helps(run: Run) -> Verdict:
    """Dropout, seeded and not."""
    runs, free, apart = patterns(run, "repeatability", "dropout", "not seeded")
    _, seeded, _ = patterns(run, "repeatability", "dropout", "dropout, seeded")
    words = f"with dropout {free} bit patterns in {runs} runs, {number(apart)} apart, and {seeded} where each run is seeded"
    return seeded < free, words


def seeding_is_not_enough(run: Run) -> Verdict:
    """Everything in the probe has equal parameters, data and random numbers: what varies then no seed can fix."""
    settings = ("in one process", "across processes", "thread counts", "dropout, seeded")
    distinct = {setting: _distinct(run, setting) for setting in settings}
    varying = [f"{setting} ({count} bit patterns)" for setting, count in distinct.items() if count > 1]
    return bool(varying), "with equal seeds it still varies: " + ", ".join(
        varying
    ) if varying else "with equal seeds nothing varies"


def never_eliminated(run: Run) -> Verdict:
    """Runs with everything held equal, the thread count included."""
    runs, distinct, _ = patterns(run, "repeatability", "", "in one process")
    across = max(distinct, _distinct(run, "across processes"))
    words = f"with threads, order and seeds held equal {across} bit pattern{'s' * (across > 1)} in {runs} runs of each process"
    return across > 1, words + (": nothing is left" if across == 1 else "")


def _distinct(run: Run, setting: str) -> int:
    """The most bit patterns of any workload; 1 where there was no other process to ask."""
    try:
        return int(largest(seen(run, "repeatability", setting=setting, quantity="distinct").value))
    except NotSeenError:
        if setting == "across processes":
            return 1
        raise


def logits_are_stabler(run: Run) -> Verdict:
    """Near saturation and in the middle, against float64."""
    quantity = "largest relative error of the gradient"
    errors = {
        (name, where): largest(seen(run, "saturation", setting=f"{name}: {where}", quantity=quantity).value)
        for name in ("with_logits", "sigmoid, then cross entropy")
        for where in ("logit from 8 to 40", "|logit| up to 4")
    }
    near, in_two, middle, middle_in_two = (number(error) for error in (errors[key] for key in _SATURATION))
    words = (
        f"largest relative error of its gradient for logits from 8 to 40: {near}, of sigmoid and cross entropy {in_two}; "
        f"for logits up to 4: {middle} and {middle_in_two}"
    )
    return errors[_SATURATION[0]] < errors[_SATURATION[1]], words


_SATURATION = [
    (name, where)
    for where in ("logit from 8 to 40", "|logit| up to 4")
    for name in ("with_logits", "sigmoid, then cross entropy")
]


def determinism_helps(run: Run) -> Verdict:
    """Bit patterns and time, with and without."""
    runs, free, _ = patterns(run, "repeatability", "determinism", "default algorithms")
    refused = _raised(run)
    if refused:
        raise NotSeenError(refused)
    _, held, _ = patterns(run, "repeatability", "determinism", "deterministic algorithms")
    cost = _ratio(run, "repeatability", "deterministic algorithms", "default algorithms")
    words = f"{free} bit pattern{'s' * (free > 1)} in {runs} runs by default, {held} with deterministic algorithms, at {cost}"
    if free == 1:
        raise NotSeenError(f"nothing varies here for them to mend: {words}")
    return held == 1, words


def _raised(run: Run) -> str:
    """What deterministic algorithms refuse to compute; empty where they compute it all."""
    rows = run.observations
    rows = rows[(rows.setting == "deterministic algorithms") & (rows.quantity == "raises")]
    return "" if rows.empty else str(rows.text.iloc[0])


def anomaly_finds(run: Run) -> Verdict:
    """The planted NaN."""
    row = _anomaly(run, "a planted NaN")
    cost = _ratio(run, "anomaly", "with detect_anomaly", "without")
    return bool(row.value), f"a planted NaN: {row.text or 'not found'}; the gradient takes {cost}"


def anomaly_finds_large(run: Run) -> Verdict:
    """The planted 1e30."""
    row = _anomaly(run, "a planted gradient of 1e30")
    return bool(
        row.value
    ), "a planted gradient of 1e30 raises" if row.value else "a planted gradient of 1e30 goes unnoticed: it looks for NaN"


def averaging_helps(run: Run) -> Verdict:
    """What rounding does to the loss of one run, and to the mean over initializations."""
    losses = [seen(run, "averaging", quantity=f"loss, {order}") for order in ("one order", "another order")]
    keys = [losses[0].subject.astype(str), losses[0]["rank"]]
    apart = pd.Series(losses[1].value.to_numpy() - losses[0].value.to_numpy(), losses[0].index)
    one, mean = largest(apart.abs().groupby(keys).mean()), largest(apart.groupby(keys).mean().abs())
    spread = largest(losses[0].value.groupby(keys).std())
    words = (
        f"another batch order moves the loss of one run by {number(one)}, the mean over initializations by {number(mean)}; "
        f"but from one initialization to the next it varies by {number(spread)}"
    )
    return mean < one, words


def averaging_equal_runs_helps(run: Run) -> Verdict:
    """Gradients against float64."""
    one, equal, ordered = (
        largest(seen(run, "averaging", setting=setting, quantity="relative_l2 from float64").value)
        for setting in ("one run", "equal runs", "batch orders")
    )
    words = (
        f"one gradient is {number(one)} from float64, the mean of equal runs {number(equal)}, of batch orders {number(ordered)}"
    )
    return min(equal, ordered) < 0.5 * one, words + "; better is less than half"


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
    Claim("the differences are minuscule, 1e-7 or so in float32", variation_is_small),
    Claim("seeding increases reproducibility", seeding_helps),
    Claim("seeding does not solve it completely", seeding_is_not_enough),
    Claim("these variations can never be entirely eliminated", never_eliminated),
    Claim("binary_cross_entropy_with_logits is numerically more stable than sigmoid and cross entropy", logits_are_stabler),
    Claim("non-deterministic algorithms are a cause that deterministic ones remove", determinism_helps),
    Claim("print statements pinpoint regions that fluctuate", untestable("it depends on who reads them")),
    Claim("anomaly detection finds where a gradient goes wrong", anomaly_finds),
    Claim("and large gradients", anomaly_finds_large),
    Claim("averaging runs with different initializations mitigates the effects of these variations", averaging_helps),
    Claim("(ours) averaging brings a gradient closer to the exact one", averaging_equal_runs_helps),
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


def _anomaly(run: Run, subject: str) -> pd.Series:
    rows = seen(run, "anomaly", subject=subject, setting="with detect_anomaly", quantity="raises")
    return rows[rows["rank"] == 0].iloc[0]


def _ratio(run: Run, probe: str, setting: str, against: str) -> str:
    """Of medians over rounds that took turns, by workload."""
    rows = seen(run, probe, quantity="seconds")
    median = rows.groupby([rows.subject.astype(str).str.split(":").str[0], rows.setting]).value.median().unstack()
    ratios = median[setting] / median[against]
    return ", ".join(f"{ratio:.2f} times the time on {workload}" for workload, ratio in ratios.items())
