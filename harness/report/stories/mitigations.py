"""What text 002 says to help: seeding, stable losses, deterministic algorithms, debugging tools, averages."""

import pandas as pd

from harness.report.frame import Run
from harness.report.stories.bit_patterns import counted, distinct_patterns, patterns
from harness.report.stories.claims import Claim, NotSeenError, Verdict, largest, seen, untestable
from harness.report.text import number


def seeding_helps(run: Run) -> Verdict:
    """Dropout, seeded and not."""
    runs, free, apart = patterns(run, "repeatability", "dropout", "not seeded")
    _, seeded, _ = patterns(run, "repeatability", "dropout", "dropout, seeded")
    words = f"with dropout {free} bit patterns in {runs} runs, {number(apart)} apart, and {seeded} where each run is seeded"
    return seeded < free, words


def seeding_is_not_enough(run: Run) -> Verdict:
    """Everything in the probe has equal parameters, data and random numbers: what varies then no seed can fix."""
    settings = ("in one process", "across processes", "thread counts", "dropout, seeded")
    distinct = {setting: distinct_patterns(run, setting) for setting in settings}
    varying = [f"{setting} ({count} bit patterns)" for setting, count in distinct.items() if count > 1]
    words = "it still varies over " + ", ".join(varying) if varying else "nothing varies"
    return bool(varying), f"with equal seeds {words}"


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
    words = f"{counted(free)} in {runs} runs by default, {held} with deterministic algorithms, at {cost}"
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
    found = "raises" if row.value else "goes unnoticed: it looks for NaN"
    return bool(row.value), f"a planted gradient of 1e30 {found}"


def averaging_helps(run: Run) -> Verdict:
    """What rounding does to the loss of one run, and to the mean over initializations."""
    losses = [seen(run, "averaging", quantity=f"loss, {order}") for order in ("one order", "another order")]
    keys = [losses[0].subject.astype(str), losses[0]["rank"]]
    apart = pd.Series(losses[1].value.to_numpy() - losses[0].value.to_numpy(), losses[0].index)
    largest(apart.abs())  # a mean would leave out a loss that is NaN
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


def _anomaly(run: Run, subject: str) -> pd.Series:
    rows = seen(run, "anomaly", subject=subject, setting="with detect_anomaly", quantity="raises")
    return rows[rows["rank"] == 0].iloc[0]


def _ratio(run: Run, probe: str, setting: str, against: str) -> str:
    """Of medians over rounds that took turns, by workload."""
    rows = seen(run, probe, quantity="seconds")
    median = rows.groupby([rows.subject.astype(str).str.split(":").str[0], rows.setting]).value.median().unstack()
    ratios = median[setting] / median[against]
    return ", ".join(f"{ratio:.2f} times the time on {workload}" for workload, ratio in ratios.items())


MITIGATIONS = [
    Claim("seeding increases reproducibility", seeding_helps),
    Claim("seeding does not solve it completely", seeding_is_not_enough),
    Claim("binary_cross_entropy_with_logits is numerically more stable than sigmoid and cross entropy", logits_are_stabler),
    Claim("non-deterministic algorithms are a cause that deterministic ones remove", determinism_helps),
    Claim("print statements pinpoint regions that fluctuate", untestable("it depends on who reads them")),
    Claim("anomaly detection finds where a gradient goes wrong", anomaly_finds),
    Claim("and large gradients", anomaly_finds_large),
    Claim("averaging runs with different initializations mitigates the effects of these variations", averaging_helps),
    Claim("(ours) averaging brings a gradient closer to the exact one", averaging_equal_runs_helps),
]
