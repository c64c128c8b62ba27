"""Text 000: "Differences between gradient calculated by different reduction methods in PyTorch"."""

import itertools

import pandas as pd

from harness.report.frame import Run
from harness.report.stories.claims import NO_STEPS, Claim, NotSeenError, Verdict, matters, seen, untestable
from harness.report.stories.pairs import pairs
from harness.report.tables import Table
from harness.report.text import number
from harness.schema.record import CASE

TITLE = "differences between gradients of different reduction methods"
ROUNDING = 1e-12
"""Relative L2 in float64: rounding stays below it, another function or another weighting does not."""
MODES = {"none": "none", "sum": "sum", "mean": "avg", "one_by_one": "one-by-one"}
"""Ours and the text's names of its four modes."""
DIVIDED = "sum_then_divide"
"""As the text computes its sum: not the loss is divided by n, but the gradient."""
RECORDED = {("none", "sum"), ("none", "mean"), ("sum", "one_by_one"), ("mean", "one_by_one")}
"""Pairs for which the text printed 0.0316; for the others it printed 0.0."""


def identical(one: str, other: str, words: str) -> "Claim":
    """That two modes leave the same bits."""

    def test(run: Run) -> Verdict:
        found = pairs(run, one, other, fault="")
        exact = found[found.max_abs == 0]
        counted = f"exactly 0 in {len(exact)} of {len(found)} settings"
        rest = found[found.max_abs != 0]
        if rest.empty:
            return True, counted
        worst = rest.loc[rest.max_abs.idxmax()]
        return False, f"{counted}; {number(worst.max_abs)} in {worst.precision} with {worst.samples} samples"

    return Claim(words, test)


def two_pairs_differ(run: Run) -> Verdict:
    """By more than rounding: a difference that stays in float64."""
    single, double = (pairs(run, "none", "sum", precision=precision) for precision in ("fp32", "fp64"))
    words = f"none - sum is {number(single.max_abs.max())} in fp32 and {number(double.max_abs.max())} in fp64"
    return bool(double.relative_l2.max() > ROUNDING), words


def not_linear(run: Run) -> Verdict:
    """The gradient of a sum is the sum of gradients if the modes agree in float64."""
    double = pairs(run, "none", "sum", precision="fp64")
    worst = double.relative_l2.max()
    words = f"in fp64 the sum of the samples' gradients is {number(worst)} (relative L2) from the gradient of their sum"
    return bool(worst > ROUNDING), words + ("" if worst > ROUNDING else ": differentiation is linear, whatever the loss is")


def retain_graph(run: Run) -> Verdict:
    """`none` keeps its graph; one_by_one_forward makes a new one for each sample."""
    double = pairs(run, "none", "one_by_one_forward", precision="fp64")
    double = double[~double.workload.isin(_coupled(run))]
    if double.empty:
        raise NotSeenError("samples influence each other in every workload of this run: a sample alone is another function")
    worst = double.relative_l2.max()
    return bool(worst > ROUNDING), f"with a kept graph and with a new one for each sample: {number(worst)} apart in fp64"


def factor_n(run: Run) -> Verdict:
    """sum divided by n equals mean."""
    double = pairs(run, "sum", "mean", precision="fp64")
    return bool(double.relative_l2.max() <= ROUNDING), f"sum / n is {number(double.relative_l2.max())} from mean in fp64"


def adam_forgives(run: Run) -> Verdict:
    """Parameters after some steps with the gradient of the mean, and of the sum."""
    drift = seen(run, "loss_scale", setting="mean - sum", quantity="parameters, relative_l2")
    adam, sgd = (drift[drift.setting.str.contains(f"of {optimizer}")].value.max() for optimizer in ("adam", "sgd"))
    if pd.isna(adam) or pd.isna(sgd):
        raise NotSeenError("this run takes no steps of both optimizers: set drift.steps")
    words = f"with a gradient n times as large the parameters end {number(adam)} away under Adam, {number(sgd)} under SGD"
    return bool(adam < 0.1 * sgd), words


def mean_is_constant(run: Run) -> Verdict:
    """The same data twice over."""
    mean = seen(run, "loss_scale", quantity="mean, relative_l2").value.max()
    scale = seen(run, "loss_scale", quantity="sum, scale").value.mean()
    words = f"with every sample twice mean changes by {number(mean)} (relative L2), sum by a factor of {scale:.12g}"
    return bool(mean <= ROUNDING), words


def alias_explains(run: Run) -> Verdict:
    """Our own: with the first gradient kept without a copy, the text's pattern comes out, as large as predicted."""
    found = pairs(run, fault="alias", precision="fp64")
    found = found[found.one.isin(MODES) & found.other.isin(MODES)]
    between = _between(found)
    inside = found[~between].max_abs.max()
    apart, predicted = found[between].max_abs, found[between].predicted
    if predicted.isna().any():
        raise NotSeenError("no prediction: the alias acts on neither mode of a pair")
    error = ((apart - predicted) / predicted).abs().max()
    words = (
        f"inside the pairs {number(inside)}, between them up to {number(apart.max())}, within {number(error)} of the prediction"
    )
    return bool(apart.min() > 0 and error <= ROUNDING and inside <= ROUNDING), words


def modes_matter(run: Run) -> Verdict:
    """Two of the text's modes without a fault, after some optimizer steps, in float32."""
    if run.drifts.empty:
        raise NotSeenError(NO_STEPS)
    cases = run.cases.set_index("case_id")
    own, other = run.drifts.case_id.astype(str), run.drifts.against.str.removeprefix(CASE)
    known = own.map(cases.reduction).isin(MODES) & other.map(cases.reduction).isin(MODES)
    clean = own.map(cases.fault).astype(str) == "none"
    rows = run.drifts[known & clean & (run.drifts.step == run.config.drift.steps)]
    if rows.empty:
        raise NotSeenError("this run compares no two of the text's modes without a fault")
    worst = rows.loc[((rows.loss - rows.against_loss) / rows.against_loss).abs().idxmax()]
    return matters(run, rows.relative_l2.max(), worst.loss, worst.against_loss, "two of the text's modes")


CLAIMS = [
    identical("none", "one_by_one", "reduction = none and one-by-one give identical gradients (0.0)"),
    identical("sum", "mean", "reduction = sum and avg give identical gradients (0.0)"),
    identical(DIVIDED, "mean", "(ours) also where not the loss is divided by n, but the gradient, as in the text"),
    Claim("the two pairs differ from each other, by 0.0316", two_pairs_differ),
    Claim("they differ because cross-entropy is not linear", not_linear),
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
    """The text's six lines for each fault, workload, precision and batch size; and what theory says of the alias."""
    found = []
    for fault in run.cases.fault.astype(str).unique():
        try:
            found.append(_six_lines(pairs(run, fault=fault), fault))
        except NotSeenError:
            continue
    return [*found, *_prediction(run)]


def _six_lines(found: pd.DataFrame, fault: str) -> Table:
    rows = []
    names = MODES | {DIVIDED: "sum, then divided"}
    for one, other in [*itertools.combinations(MODES, 2), (DIVIDED, "mean")]:
        pair = found[(found.one.isin((one, other))) & (found.other.isin((one, other)))]
        named = _settings(pair, found.workload.nunique() > 1)
        values = dict(zip(named, pair.max_abs.map(number), strict=True))
        recorded = "0.0316" if (one, other) in RECORDED else "0.0" if one in MODES else ""
        rows.append({"reduction =": f"{names[one]} and {names[other]}", "the text": recorded, **values})
    note = "Largest absolute difference of an element; 0 is exact. The columns are settings: precision and samples."
    return Table(f"Maximum discrepancy between reduction = ..., fault={fault}", pd.DataFrame(rows).fillna(""), note)


def _settings(pair: pd.DataFrame, with_workload: bool) -> list[str]:
    settings = pair.precision + ", " + pair.samples.astype(str)
    return list(pair.workload + " " + settings if with_workload else settings)


def _prediction(run: Run) -> list[Table]:
    try:
        found = pairs(run, "none", "sum", fault="alias", precision="fp64")
    except NotSeenError:
        return []
    rows = pd.DataFrame(
        {
            "workload": found.workload,
            "samples": found.samples,
            "ranks": found.world_size,
            "measured": found.max_abs.map("{:.15g}".format),
            "predicted": found.predicted.map("{:.15g}".format),
            "apart, relative": ((found.max_abs - found.predicted) / found.predicted).abs().map(number),
        }
    )
    note = "In fp64: the difference between none and sum, and max |sum over ranks of (g1 - g0)| / N, from float64 gradients."
    return [Table("The alias, measured and predicted", rows, note)]


def _between(found: pd.DataFrame) -> pd.Series:
    return pd.Series(
        [(one, other) in RECORDED or (other, one) in RECORDED for one, other in zip(found.one, found.other, strict=True)],
        index=found.index,
    )


def _coupled(run: Run) -> set[str]:
    coupled = run.findings[run.findings.kind == "batch_coupling"].case_id.astype(str)
    return {case_id.split(".")[0] for case_id in coupled}
