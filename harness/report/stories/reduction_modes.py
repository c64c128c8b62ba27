"""Text 000: "Differences between gradient calculated by different reduction methods in PyTorch"."""

import contextlib
import itertools

import pandas as pd

from harness.report.distance import as_distance
from harness.report.frame import Run
from harness.report.stories.claims import NO_STEPS, Claim, NotSeenError, Verdict, largest, matters, seen, untestable
from harness.report.stories.pairs import pairs
from harness.report.tables import Table
from harness.report.text import number
from harness.schema.record import CASE

TITLE = "differences between gradients of different reduction methods"
ROUNDING = 1e-12
"""Relative L2 in float64: rounding stays below it, another function or another weighting does not."""
RECORDED = {("none", "sum"), ("none", "avg"), ("sum", "one-by-one"), ("avg", "one-by-one")}
"""Pairs for which the text printed 0.0316; for the others it printed 0.0."""
DIVIDED = "sum_then_divide"
ADAM_FORGIVES = 1e-2
"""Relative L2 of parameters up to which we say that Adam does not care."""


def modes(run: Run) -> dict[str, str]:
    """The text's name of each of its modes to ours. It divides the gradient of its sum by n, and so does ours, if it ran."""
    divided = DIVIDED in set(run.cases.reduction.astype(str))
    return {"none": "none", "sum": DIVIDED if divided else "sum", "avg": "mean", "one-by-one": "one_by_one"}


def of_text(run: Run, one: str, other: str, *, fault: str = "none", precision: str = "") -> pd.DataFrame:
    """Pairs of two modes, by the text's names."""
    return pairs(run, modes(run)[one], modes(run)[other], fault=fault, precision=precision)


def identical(one: str, other: str, words: str) -> "Claim":
    """That two modes, by the text's names, leave the same bits, whatever the fault."""

    def test(run: Run) -> Verdict:
        return _exactly_zero(of_text(run, one, other, fault=""))

    return Claim(words, test)


def _exactly_zero(found: pd.DataFrame) -> Verdict:
    worst = found.loc[found.max_abs == largest(found.max_abs)].iloc[0]
    counted = f"exactly 0 in {int((found.max_abs == 0).sum())} of {len(found)} settings"
    return worst.max_abs == 0, counted + f"; {number(worst.max_abs)} with {worst.setting} samples" * bool(worst.max_abs)


def divided_before_backward(run: Run) -> Verdict:
    """Our `sum` against `mean`, where the text's own sum ran beside it."""
    if modes(run)["sum"] != DIVIDED:
        raise NotSeenError(f"this run has no reduction={DIVIDED} beside sum")
    return _exactly_zero(pairs(run, "sum", "mean", fault=""))


def two_pairs_differ(run: Run) -> Verdict:
    """By more than rounding: a difference that stays in float64."""
    single, double = (of_text(run, "none", "sum", precision=precision) for precision in ("fp32", "fp64"))
    words = f"none - sum is {number(largest(single.max_abs))} in fp32 and {number(largest(double.max_abs))} in fp64"
    return largest(double.relative_l2) > ROUNDING, words


def not_linear(run: Run) -> Verdict:
    """The gradient of a sum is the sum of gradients if the modes agree in float64."""
    worst = largest(of_text(run, "none", "sum", precision="fp64").relative_l2)
    words = f"in fp64 the sum of the samples' gradients is {number(worst)} (relative L2) from the gradient of their sum"
    return worst > ROUNDING, words + ("" if worst > ROUNDING else ": differentiation is linear, whatever the loss is")


def only_approximates(run: Run) -> Verdict:
    """The mean's gradient against the samples' own."""
    worst = largest(of_text(run, "none", "avg", precision="fp64").relative_l2)
    words = f"in fp64 avg is {number(worst)} (relative L2) from the mean of the samples' own gradients"
    return worst > ROUNDING, words + ("" if worst > ROUNDING else ": it is the same gradient")


def retain_graph(run: Run) -> Verdict:
    """`none` keeps its graph; one_by_one_forward makes a new one for each sample."""
    double = pairs(run, "none", "one_by_one_forward", precision="fp64")
    double = double[~double.workload.isin(_other_functions(run))]
    if double.empty:
        raise NotSeenError("samples influence each other in every workload of this run: a sample alone is another function")
    worst = largest(double.relative_l2)
    return worst > ROUNDING, f"with a kept graph and with a new one for each sample: {number(worst)} apart in fp64"


def factor_n(run: Run) -> Verdict:
    """sum divided by n equals mean."""
    worst = largest(of_text(run, "sum", "avg", precision="fp64").relative_l2)
    return worst <= ROUNDING, f"sum / n is {number(worst)} from mean in fp64"


def adam_forgives(run: Run) -> Verdict:
    """Parameters after some steps with the gradient of the mean, and of the sum."""
    if not run.config.drift.steps:
        raise NotSeenError(NO_STEPS)
    drift = seen(run, "loss_scale", setting="of adam", quantity="parameters, relative_l2").value
    adam = largest(drift)
    sgd = as_distance(seen(run, "loss_scale", setting="of sgd", quantity="parameters, relative_l2").value).max()
    words = f"at one learning rate mean and sum end with parameters {number(adam)} apart under Adam, {number(sgd)} under SGD"
    return adam < ADAM_FORGIVES, words


def mean_is_constant(run: Run) -> Verdict:
    """The same data twice over."""
    mean = largest(seen(run, "loss_scale", setting="twice, mean", quantity="relative_l2").value)
    scale = largest(seen(run, "loss_scale", setting="twice, sum", quantity="scale").value)
    words = f"with every sample twice mean changes by {number(mean)} (relative L2), sum by a factor of {scale:.12g}"
    return mean <= ROUNDING, words


def alias_explains(run: Run) -> Verdict:
    """Our own: with the first gradient kept without a copy, the text's pattern comes out, as large as predicted."""
    inside, between = _inside(run), _between(run)
    if between.predicted.isna().any():
        raise NotSeenError("theory puts both modes of a pair away from the reference; select normalization=[global_mean]")
    error = largest((between.max_abs - between.predicted).abs() / between.predicted)
    within, apart = largest(inside.relative_l2), largest(between.max_abs)
    exact = f"exactly 0 in {int((inside.max_abs == 0).sum())} of {len(inside)} settings, else {number(within)}"
    words = f"inside the pairs {exact}; between them up to {number(apart)}, within {number(error)} of the prediction"
    return bool(between.max_abs.min() > 0 and error <= ROUNDING and within <= ROUNDING), words


def modes_matter(run: Run) -> Verdict:
    """Two of the text's modes after optimizer steps: without a fault, or under the faults that are all the run has."""
    if run.drifts.empty:
        raise NotSeenError(NO_STEPS)
    cases, known = run.cases.set_index("case_id"), set(modes(run).values())
    own, other = run.drifts.case_id.astype(str), run.drifts.against.str.removeprefix(CASE)
    faults = own.map(cases.fault).astype(str)
    planted = "" if (faults == "none").any() else f" with fault={','.join(faults.unique())}"
    ours = own.map(cases.reduction).isin(known) & other.map(cases.reduction).isin(known)
    rows = run.drifts[ours & ((faults == "none") | bool(planted)) & (run.drifts.step == run.config.drift.steps)]
    if rows.empty:
        raise NotSeenError("this run compares no two of the text's modes")
    return matters(run, rows.relative_l2, rows.loss, rows.against_loss, f"two of the text's modes{planted}")


CLAIMS = [
    identical("none", "one-by-one", "reduction = none and one-by-one give identical gradients (0.0)"),
    identical("sum", "avg", "reduction = sum, its gradient divided by n, and avg give identical gradients (0.0)"),
    Claim("(ours) sum and avg do so where the loss is divided by n before backward", divided_before_backward),
    Claim("the two pairs differ from each other, by 0.0316", two_pairs_differ),
    Claim("they differ because cross-entropy is not linear", not_linear),
    Claim("sum and avg only approximate what the individual gradients would give", only_approximates),
    Claim("it may be due to retain_graph=True", retain_graph),
    Claim("the gradient of sum always equals n times the gradient of mean", factor_n),
    Claim(
        'reduction "none" computes gradient updates independently and applies their composition',
        untestable("a loss reduction applies no update: what is done with the losses is the training loop's"),
    ),
    Claim("Adam accounts for the constant difference between sum and mean", adam_forgives),
    Claim("mean keeps gradients constant regardless of the batch size, for the same data", mean_is_constant),
    Claim(
        "reducing with sum or mean gives more robust outcomes than individual gradients",
        untestable("the text gives no measure of robust, and the gradients are the same"),
    ),
    Claim("(ours) the first sample's gradient was kept without a copy, and overwritten: fault=alias", alias_explains),
    Claim("(asked) it matters which mode a model is trained with", modes_matter),
]


def tables(run: Run) -> list[Table]:
    """The text's six lines for each fault, over all settings; and what theory says of the alias."""
    found = []
    for fault in run.cases.fault.astype(str).unique():
        with contextlib.suppress(NotSeenError):
            found.append(_six_lines(run, fault))
    with contextlib.suppress(NotSeenError):
        found.append(_prediction(run))
    return found


def _six_lines(run: Run, fault: str) -> Table:
    names, found = modes(run), pairs(run, fault=fault)
    lines = [(f"{one} and {other}", names[one], names[other]) for one, other in itertools.combinations(names, 2)]
    if names["sum"] == DIVIDED:
        lines.append(("sum, its loss divided, and avg", "sum", "mean"))
    rows, recorded = [], {f"{one} and {other}" for one, other in RECORDED}
    for line, one, other in lines:
        pair = found[found.one.isin((one, other)) & found.other.isin((one, other))]
        printed = "0.0316" if line in recorded else "0.0" if names.get(line.split(" and ")[0]) else ""
        rows.append(
            {"reduction =": line, "the text": printed, **dict(zip(pair.setting, pair.max_abs.map(number), strict=True))}
        )
    note = (
        "Largest absolute difference of an element; 0 is exact. The columns are settings, with the samples of the global batch."
    )
    return Table(f"Maximum discrepancy between reduction = ..., fault={fault}", pd.DataFrame(rows).fillna(""), note)


def _prediction(run: Run) -> Table:
    found = of_text(run, "none", "sum", fault="alias", precision="fp64")
    rows = pd.DataFrame(
        {
            "setting": found.setting,
            "ranks": found.world_size,
            "measured": found.max_abs.map("{:.15g}".format),
            "predicted": found.predicted.map("{:.15g}".format),
            "apart, relative": ((found.max_abs - found.predicted) / found.predicted).abs().map(number),
        }
    )
    note = "In fp64: the difference between none and sum, and max |sum over ranks of (g1 - g0)| / N, from float64 gradients."
    return Table("The alias, measured and predicted", rows, note)


def _inside(run: Run) -> pd.DataFrame:
    """Under the alias, the text's two pairs whose members agree."""
    inside = (("none", "one-by-one"), ("sum", "avg"))
    return pd.concat([of_text(run, *pair, fault="alias", precision="fp64") for pair in inside])


def _between(run: Run) -> pd.DataFrame:
    """Under the alias, the pairs whose members differ."""
    return pd.concat([of_text(run, *pair, fault="alias", precision="fp64") for pair in RECORDED])


def _other_functions(run: Run) -> set[str]:
    """Workloads whose samples influence each other."""
    kinds = run.findings[run.findings.kind.isin(("other_function", "batch_coupling"))].case_id.astype(str)
    return {case_id.split(".")[0] for case_id in kinds}
