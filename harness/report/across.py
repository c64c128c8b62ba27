"""Several runs side by side: the same cases on other numbers of ranks."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from harness.report.cost import cost
from harness.report.differing_keys import differing_keys
from harness.report.discrepancy import WORST, discrepancy
from harness.report.frame import Run
from harness.report.labels import columns_but_of, labelled
from harness.report.machine import cores, ranks, threads
from harness.report.text import milliseconds, number, yes
from harness.report.timing import timing
from harness.schema.case import TABLE
from harness.schema.record import FULL_BATCH, REFERENCE, SINGLE_RANK

_VARIED = "torchrun."
"""Keys that this table varies."""
_MACHINE: dict[str, Callable[[Run], object]] = {
    "device": lambda run: run.environment.get("device"),
    "backend": lambda run: run.environment.get("backend"),
    "versions": lambda run: run.environment.get("versions"),
    "commit": lambda run: run.environment.get("commit"),
    "hosts": lambda run: sorted({str(rank.get("host")) for rank in run.environment.get("ranks", [])}),
}
"""What a run found, beside what it was asked for."""
_LOCAL = "local"
"""The aggregation that sends nothing."""


def across(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a measured case and run, the runs of a case together, in order of their ranks.

    speed_up: seconds of a step on the fewest ranks, over its own; NaN where one run alone has the case. efficiency: the
    speed-up over how many times as many ranks.
    exposed_s: seconds of a step more than those of the same step without communication (aggregation=local of the same run).
    same_bits: whether rank 0 holds the bits of the run with the fewest ranks.
    """
    labels = labelled(pd.concat([run.cases for run in runs]).drop_duplicates("case_id"))
    measured = pd.concat([_of_run(run) for run in runs])
    if measured.empty:
        return measured.rename_axis("case_id").reset_index()
    place = {case_id: place for place, case_id in enumerate(labels.index)}
    table = labels.join(measured, how="inner").rename_axis("case_id").reset_index()
    table = table.assign(place=table.case_id.map(place)).sort_values(["place", "ranks"], kind="stable").drop(columns="place")
    by_case = table.groupby("case_id", sort=False)
    first = by_case[["step_s", "ranks", "gradient_sha256"]].transform("first")
    alone = by_case.ranks.transform("size") == 1
    none_to_compare = alone | (table.ranks == first.ranks) | (table.gradient_sha256 == "")
    return table.assign(
        speed_up=(first.step_s / table.step_s).where(~alone),
        efficiency=(first.step_s / table.step_s * first.ranks / table.ranks).where(~alone),
        same_bits=(table.gradient_sha256 == first.gradient_sha256).where(~none_to_compare),
    ).reset_index(drop=True)


def across_table(rows: pd.DataFrame) -> pd.DataFrame:
    """For a person."""
    labels = list(rows.columns[1 : list(rows.columns).index("ranks")])
    crowded = rows.threads > rows.cores
    texts = {
        "ranks": rows.ranks.astype(str),
        "step, ms": rows.step_s.map(milliseconds),
        "speed-up": rows.speed_up.map(_distance) + (crowded & rows.speed_up.notna()).map({True: " (!)", False: ""}),
        "efficiency": rows.efficiency.map(lambda value: "" if pd.isna(value) else f"{value:.0%}"),
        "exposed communication, ms": rows.exposed_s.map(lambda value: "" if pd.isna(value) else milliseconds(value)),
        "relative L2": rows[REFERENCE].map(_distance),
        "relative L2, full batch": rows[FULL_BATCH].map(_distance),
        "relative L2, one rank alone": rows[SINGLE_RANK].map(_distance),
        "bits of the fewest ranks": rows.same_bits.map(lambda value: "" if pd.isna(value) else yes(bool(value))),
    }
    return rows[labels].assign(**texts)


def remarks(runs: Sequence[Run]) -> list[str]:
    """What to know before the figures are compared."""
    each = sorted({run.config.threads_per_rank for run in runs})
    lines = [f"Threads a rank: {', '.join(map(str, each))}."]
    lines += [
        f"(!) {threads(run)} threads on {cores(run)} cores ({ranks(run)} ranks): the speed-up is not that of as many cores."
        for run in runs
        if threads(run) > cores(run)
    ]
    unlike = [name for name in differing_keys([run.config for run in runs]) if not name.startswith(_VARIED)]
    unlike = [name for name in unlike if name not in _MACHINE]  # auto and cpu may have found the same
    unlike += [name for name, of in _MACHINE.items() if len({repr(of(run)) for run in runs}) > 1]
    return lines + ([f"The runs differ in more than their ranks: {', '.join(unlike)}."] if unlike else [])


def _of_run(run: Run) -> pd.DataFrame:
    costs, distances = cost(run, timing(run)), discrepancy(run)
    if costs.empty or distances.empty:
        return pd.DataFrame()
    far = distances.pivot(index="case_id", columns="against", values=WORST)
    cases = run.cases.set_index("case_id")
    clock = "cuda_event" if "cuda_event.step.median" in costs else "host"
    step = costs[f"{clock}.step.median"]
    facts = pd.DataFrame({"ranks": cases.world_size, "step_s": step, "exposed_s": step - _without_communication(cases, step)})
    common = cases.gradient_sha256.where(cases.aggregation != _LOCAL, "")  # each rank's own is no common gradient
    facts = facts.assign(gradient_sha256=common, threads=threads(run), cores=cores(run))
    return facts.join(far.reindex(columns=[REFERENCE, FULL_BATCH, SINGLE_RANK])).dropna(subset="step_s")


def _without_communication(cases: pd.DataFrame, step: pd.Series) -> pd.Series:
    """Seconds of the case's step under aggregation=local, whatever else it has in common; NaN where the run has none."""
    like = columns_but_of(cases, [name for name, axis in TABLE.items() if axis.in_sum])
    key = cases[like].astype(object).map(str).agg("|".join, axis=1)
    local = step[cases.aggregation.reindex(step.index) == _LOCAL]
    seconds = {key[case_id]: value for case_id, value in local.items()}
    return pd.Series(
        [np.nan if cases.aggregation[c] == _LOCAL else seconds.get(key[c], np.nan) for c in cases.index], cases.index
    )


def _distance(value: float) -> str:
    return "" if pd.isna(value) else number(value)
