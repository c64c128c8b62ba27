"""Gates: limits that a run or a comparison has to keep, and what may be said of them."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.report.comparison import Comparison
from harness.report.discrepancy import furthest_distances
from harness.report.frame import Run
from harness.report.labels import labelled
from harness.report.sides import DISCREPANCY, FIGURES, MEMORY, TIME
from harness.report.text import mebibytes, milliseconds, number
from harness.report.timing import Timing
from harness.schema.record import OK
from harness.schema.refusal import RefusedError

BROKEN, KEPT, UNTOLD = "broken", "kept", "cannot tell"
_LIMIT = re.compile(r"(?P<metric>[a-z0-9_.]+)=(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)(?P<unit>[%x])")


@dataclass(frozen=True)
class Gate:
    """A metric of a comparison may grow to `limit` times what it was."""

    text: str
    metric: str
    limit: float


@dataclass(frozen=True)
class Judged:
    """A gate and a case."""

    gate: str
    case: str
    outcome: str
    """BROKEN, KEPT or UNTOLD."""
    why: str


def parse_gate(text: str) -> Gate:
    """`time=5%` is a limit of 1.05, `relative_l2=2x` of 2. Raises RefusedError."""
    found = _LIMIT.fullmatch(text)
    metric = found["metric"] if found else ""
    if not found or (metric.split(".")[0] if metric.startswith(f"{TIME}.") else metric) not in (TIME, MEMORY, DISCREPANCY):
        if metric in FIGURES:
            raise RefusedError(f"--gate {text}: {metric} has no gate; accepted: {TIME}, {TIME}.PHASE, {MEMORY}, {DISCREPANCY}")
        raise RefusedError(
            f"--gate {text}: expected METRIC=LIMIT, as time=5%, memory=10%, relative_l2=2x or time.aggregate=10%: "
            "by how many per cent the metric may grow, or to how many times as much"
        )
    value = _positive(f"--gate {text}", found["number"])
    limit = 1 + value / 100 if found["unit"] == "%" else value
    if limit < 1:
        raise RefusedError(f"--gate {text}: a limit of less than 1x asks for an improvement, which is no gate")
    return Gate(text, metric, limit)


def parse_share(name: str, text: str) -> float:
    """`10%` is 0.1. Raises RefusedError."""
    if not text.endswith("%"):
        raise RefusedError(f"{name} {text}: expected per cent, as 10%")
    return _positive(f"{name} {text}", text[:-1]) / 100


def parse_limit(name: str, text: str) -> float:
    """A number of at least 0. Raises RefusedError."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise RefusedError(f"{name} {text}: expected a number of at least 0")
    return value


def judge_comparison(gates: Sequence[Gate], compared: Comparison) -> list[Judged]:
    """A gate is broken where the whole interval of the ratio lies beyond the limit, kept where all of it is within.

    Else, or without an interval, the launches cannot tell. A case that base measured, and new tried and has no numbers of,
    breaks every gate. Raises RefusedError for a gate on what was not measured.
    """
    known = set(compared.rows.metric)
    for gate in gates:
        if gate.metric not in known:
            measured = ", ".join(sorted(known))
            raise RefusedError(f"--gate {gate.text}: {gate.metric} was not measured on both sides, but {measured}")
    names = compared.names
    judged = [
        Judged(gate.text, names[row.case], outcome(row.low, row.high, gate.limit), _ratio(row.ratio, row.low, row.high))
        for gate in gates
        for row in compared.rows[compared.rows.metric == gate.metric].itertuples()
    ]
    lost = [(gate.text, names[case]) for gate in gates for case in compared.lost]
    return judged + [Judged(*one, BROKEN, "measured in base, not in new") for one in lost]


def judge_run(run: Run, timing: Timing, limits: dict[str, float]) -> list[Judged]:
    """Absolute limits, by metric: TIME in seconds, MEMORY in bytes, DISCREPANCY. A case without numbers breaks them all."""
    names = labelled(run.cases).agg(" ".join, axis=1)
    judged = [
        Judged(_absolute(metric, limit), names[case_id], outcome(low, high, limit), why)
        for metric, limit in limits.items()
        for case_id, low, high, why in _values(run, timing, metric)
    ]
    failed = [(names[row.case_id], f"{row.status}: {row.reason}") for row in run.cases.itertuples() if row.status == "failed"]
    failed += [(name, "missing: the run ended before it") for name in run.missing]
    judged += [Judged("every case has numbers", case, BROKEN, why) for case, why in failed]
    return judged + [Judged("every file is whole", file, BROKEN, why) for file, why in run.damaged.items()]


def outcome(low: float, high: float, limit: float) -> str:
    """Of an interval and a limit."""
    return BROKEN if low > limit else KEPT if high <= limit else UNTOLD


def _values(run: Run, timing: Timing, metric: str) -> Iterator[tuple[str, float, float, str]]:
    """case_id, interval, and the interval in words, of every measured case."""
    if metric == TIME:
        steps = timing.phases.merge(timing.cases, on=["case_id", "clock"])
        for row in steps[steps.phase == "step"].itertuples():
            yield row.case_id, row.low, row.high, f"{_ms(row.median)} [{_ms(row.low)}, {_ms(row.high)}] ms"
        return
    for case_id, most in (_most_memory(run) if metric == MEMORY else furthest_distances(run)).items():
        yield str(case_id), most, most, f"{mebibytes(most)} MiB" if metric == MEMORY else number(most)


def _most_memory(run: Run) -> pd.Series:
    measured = run.launched[run.launched.status == OK]
    return measured.groupby("case_id", sort=False).peak_memory_bytes.max().astype(float)


def _absolute(metric: str, limit: float) -> str:
    shown = {TIME: f"step <= {_ms(limit)} ms", MEMORY: f"memory <= {mebibytes(limit)} MiB"}
    return shown.get(metric, f"relative_l2 <= {limit:g}")


def _ratio(ratio: float, low: float, high: float) -> str:
    return f"{number(ratio)} times" + ("" if math.isnan(low) else f" [{number(low)}, {number(high)}]")


def _ms(seconds: float) -> str:
    return milliseconds(seconds)


def _positive(what: str, text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise RefusedError(f"{what}: expected a number of more than 0")
    return value


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
