"""A run's report: the answer, the findings, the tables, the environment; on the terminal, as CSV, and as one Markdown page."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from rich.console import Console
from rich.text import Text

from harness.report.across import across, across_table, remarks
from harness.report.answer import answer
from harness.report.breakdown import breakdown_table, straggler_table
from harness.report.caution import cautions, short
from harness.report.caution import remarks as caution_remarks
from harness.report.collectives import collective_tables, collectives, unmeasured
from harness.report.cost import cost, cost_table
from harness.report.devices import NOTE as DEVICES
from harness.report.devices import device_table, machine_doubts
from harness.report.discrepancy import discrepancy, discrepancy_table, parameters
from harness.report.drift import drift, drift_table
from harness.report.environment import environment_table
from harness.report.failures import damaged_table, failure_tables
from harness.report.frame import Run, load_run
from harness.report.nccl import choices_frame, nccl_tables
from harness.report.nccl_matrix import is_matrix, matrix, matrix_tables
from harness.report.norms import CASES, FAR, GROUPS, LOSS, NORM, known, norms, norms_table
from harness.report.pairwise import pairwise, pairwise_table
from harness.report.prediction import prediction, prediction_table
from harness.report.price import price, price_note, price_table
from harness.report.probes import SUMMATION_ORDER, probe_tables
from harness.report.stories import tell
from harness.report.tables import Table, csv, escape
from harness.report.timing import Timing, timing
from harness.report.traces import trace_tables
from harness.report.trade import trade, trade_table
from harness.report.why import why_tables
from harness.schema.file_names import file_name
from harness.schema.record import CUDA_QUEUED, OK, VERDICT
from harness.schema.run_dir import RunDir
from harness.schema.text import plain

_UNBOUNDED = 1000
"""Columns where no terminal bounds them."""
_ROOM_FOR_STATISTICS = 150
_MOST_MISSING = 200
"""Number of missing cases that are named."""
_COST = (
    "The step of the slowest rank in each iteration: median [95 % interval], and how it scatters. Outliers: iterations outside "
    "of Tukey's fences; they are counted, and stay in every figure."
)
_MEDIANS = "The step of the slowest rank in each iteration. Intervals and more stand in report.md, all phases in times.csv."
_BREAKDOWN = "Medians of the slowest rank in each iteration: they need not add up."
_PHASES = {
    "skew": " Skew: how long the first to enter aggregate waits for the last; transfer: from the last one's entry on. It can "
    "come out at 0 or below where it is shorter than the error of the clocks.",
    "exposed": " Exposed: the step, less the same step without communication.",
}
"""Sentences on phases, for runs that have them."""
_STRAGGLERS = (
    "In what share of the iterations a rank's step is the slowest, or a rank is the last to enter aggregate; and which rank "
    "waits the longest for the last one, whichever that is: the median over the iterations."
)
_CLOCKS = {
    "cpu": " Host clock.",
    "cuda": " ms: host clock, which without a synchronization is the time of the launches. device ms: between two events, on a "
    "device that is idle at first, so that it contains the launches; this is what a user waits for, and what cases are judged "
    "by.",
}
_QUEUED = (
    " device without launches ms: the same between two events, when the host has launched the whole step before; it compares "
    "the work that strategies give to the device."
)
"""Note on the clock cuda_queued, for runs that have it."""
_DISCREPANCY = (
    "Distance of the whole gradient from the float64 reference: the case's own shards, weighted by one global denominator. "
    "Full batch: one forward of the whole batch on one rank. 0 is exact."
)
_LOSS = (
    " Loss: of the compared batch, as the step computes it; gradient norm: L2, of rank 0. In parentheses: the float64 "
    "reference's, where the shown digits differ."
)
"""Sentences for runs that have them."""
_NORMS = (
    f"Of up to {CASES} cases further than {FAR:g} from the reference, furthest first, up to {GROUPS} groups each: "
    "rank 0's norm, in parentheses the reference's where the shown digits differ, and the group's share of the squared "
    "distance. All groups stand in norms.csv."
)
_PAIRWISE = "Largest absolute difference between rank 0's gradients under two modes, and their relative L2. 0 is exact."
_PREDICTION = (
    "Relative L2 from the reference, where theory puts the gradient elsewhere: as predicted from the samples' own float64 "
    "gradients, and as measured; and of the measured gradient from the predicted one."
)
_DRIFT = (
    "After {} optimizer steps from equal parameters: the two modes whose parameters are furthest apart, and their losses. "
    "All pairs and checkpoints stand in drift.csv."
)
_TRADE = (
    "Median step of the slowest rank; peak memory above one forward and one backward of the rank's mean loss, on the rank "
    "where it is most, beside what is allowed: two gradients, and what aggregation and reduction declare."
)
_MEMORY = {"cpu": " It is the resident set: the first case to use a part of torch also pays for loading it."}
_ACROSS = (
    "The same cases on other numbers of ranks. Speed-up and efficiency: against the fewest ranks. Exposed communication: the "
    "step, less that of aggregation=local in the same run."
)
_ON_REQUEST = ("prediction", "trade", "drift", "observations", "cautions", "collectives", "price", "nccl", "norms")
"""CSV files that are written when there is something in them."""


@dataclass(frozen=True)
class Report:
    """Everything that is shown of a run."""

    run: Run
    answer: list[str]
    doubts: list[str]
    """Reasons to trust the times of the run less."""
    findings: list[str]
    cautions: list[str]
    """Where figures should not be trusted."""
    pictures: dict[str, bytes]
    """File name to PNG."""
    tables: list[Table]
    brief_tables: Callable[[], list[Table]]
    """For a narrow terminal; made when one asks for them."""
    frames: dict[str, pd.DataFrame]
    """Name of the CSV to its content."""

    @property
    def failed(self) -> bool:
        """True if a case or a question of a probe failed or is missing, or a file is not whole."""
        return self.run.failed


def build(path: Path | str) -> Report:
    """Reduce a run to its report. Raises RefusedError when `path` is no run directory."""
    return report_of(load_run(path))


def report_of(run: Run) -> Report:
    """Reduce a loaded run to its report."""
    timed, story = timing(run), tell(run)
    cautioned = cautions(run, timed)
    frames = {
        "cost": cost(run, timed),
        "discrepancy": discrepancy(run),
        "prediction": prediction(run),
        "pairwise": pairwise(run),
        "drift": drift(run),
        "parameters": parameters(run),
        "norms": norms(run),
        "collectives": collectives(run),
        "price": price(run),
        "nccl": choices_frame(run),
    }
    traded = trade(run, frames["cost"], frames["discrepancy"])
    shown = frames | {"trade": traded, "cautions": cautioned}
    return Report(
        run=run,
        answer=answer(run, frames["cost"], timed),
        doubts=machine_doubts(run),
        findings=_findings(run),
        cautions=caution_remarks(run, cautioned),
        pictures=dict(_pictures(run, traded, frames["collectives"])),
        tables=[*story, *_tables(run, timed, shown, brief=False)],
        brief_tables=lambda: [*story, *_tables(run, timed, shown, brief=True)],
        frames={
            **frames,
            "cost": frames["cost"].reset_index(names="case_id"),
            "price": frames["price"].reset_index(names="case_id"),
            "trade": traded.reset_index(names="case_id"),
            "times": timed.phases,
            "ranks": timed.ranks,
            "cautions": cautioned,
            "observations": run.observations,
        },
    )


def show(paths: Sequence[Path]) -> bool:
    """Print the report of a run, or of several side by side; write it, and each run's own, to report/, and end with the paths.

    True when a case failed or is missing. Raises RefusedError when a path is no run directory.
    """
    reports = [build(path) for path in dict.fromkeys(Path(path).resolve() for path in paths)]
    pages = [_written(partial(write, report)) for report in reports]
    console = Console() if sys.stdout.isatty() else Console(width=_UNBOUNDED)
    if len(reports) == 1:
        _print(reports[0], console)
    else:
        pages.append(_written(_show_across([report.run for report in reports], console)))
    for page in pages:
        print(plain(page))
    return any(report.failed for report in reports)


def _written(write_page: Callable[[], Path]) -> str:
    """The page's path; or, of someone else's run, or on a full disk, why there is none: what is printed is the same."""
    try:
        return str(write_page())
    except OSError as error:
        return f"the report is not written: {error}"


def _show_across(runs: list[Run], console: Console) -> Callable[[], Path]:
    """Print several runs side by side; what is returned writes them to the report of the last."""
    if is_matrix(runs):
        return _show_matrix(runs, console)
    rows = across(runs)
    note = " ".join([_ACROSS, *remarks(runs)])
    tables = list(_by_workload("Across runs", across_table(rows), note)) if len(rows) else []
    unfinished = pd.concat([_not_measured(run).assign(run=str(run.path)) for run in runs])
    tables += [Table("Cases without numbers", unfinished)] if len(unfinished) else []
    tables += [damaged_table(runs)] if any(run.damaged for run in runs) else []
    for table in tables:
        table.print(console)
    return partial(_write_across, runs, rows, tables)


def _show_matrix(runs: list[Run], console: Console) -> Callable[[], Path]:
    """Print runs under different settings of NCCL side by side; what is returned writes them to the report of the last."""
    rows = matrix(runs)
    tables = list(matrix_tables(runs, rows))
    for table in tables:
        table.print(console)
    return partial(_write_several, runs, "nccl_matrix", rows, tables)


def _write_across(runs: list[Run], rows: pd.DataFrame, tables: list[Table]) -> Path:
    return _write_several(runs, "across", rows, tables)


def _write_several(runs: list[Run], name: str, rows: pd.DataFrame, tables: list[Table]) -> Path:
    run_dir = RunDir(runs[-1].path)
    run_dir.write_report(f"{name}.csv", csv(rows))
    head = [f"# {escape(runs[-1].config.name)}: {len(runs)} runs", "\n".join(f"- {escape(str(run.path))}" for run in runs)]
    return run_dir.write_report(f"{name}.md", "\n\n".join([*head, *(table.markdown() for table in tables)]).encode())


def write(report: Report) -> Path:
    """Write the CSV files and report.md; returns the page's path."""
    run_dir = RunDir(report.run.path)
    for name, frame in report.frames.items():
        if len(frame) or name not in _ON_REQUEST:
            run_dir.write_report(f"{name}.csv", csv(frame))
    for name, picture in report.pictures.items():
        run_dir.write_report(name, picture)
    return run_dir.write_report("report.md", _markdown(report).encode())


def _print(report: Report, console: Console) -> None:
    console.print()
    for line in report.answer:
        console.print(Text(plain(line), style="bold"))
    for doubt in report.doubts:
        console.print(Text(f"(!) {plain(doubt)}", style="yellow"))
    for finding in report.findings:
        console.print(Text(f"- {plain(finding)}"))
    for caution in report.cautions:
        console.print(Text(f"! {plain(caution)}", style="dim"))
    brief = console.width < _ROOM_FOR_STATISTICS
    for table in report.brief_tables() if brief else report.tables:
        table.print(console)


def _markdown(report: Report) -> str:
    head = [f"# {escape(report.run.config.name)}, {escape(report.run.path.name)}", *map(escape, report.answer)]
    warned = [f"(!) {escape(doubt)}" for doubt in report.doubts]
    findings = ["## Findings\n\n" + "\n".join(f"- {escape(finding)}" for finding in report.findings)] if report.findings else []
    cautions = ["## Cautions\n\n" + "\n".join(f"- {escape(caution)}" for caution in report.cautions)] if report.cautions else []
    environment = Table("Environment", environment_table(report.run.environment))
    pictures = [f"![{escape(name)}]({quote(name)})" for name in report.pictures]
    tables = [table.markdown() for table in (*report.tables, environment)]
    return "\n\n".join([*head, *warned, *findings, *cautions, *pictures, *tables])


def _findings(run: Run) -> list[str]:
    """Different statements, each once, with the number of cases that it is true of; verdicts lead."""
    leading = run.findings.sort_values("kind", key=lambda kind: kind != VERDICT, kind="stable")
    counted = leading.groupby("statement", sort=False).case_id.nunique()
    return [f"{statement} ({cases} case{'s' if cases > 1 else ''})" for statement, cases in counted.items()]


def _tables(run: Run, timed: Timing, frames: dict[str, pd.DataFrame], *, brief: bool) -> Iterator[Table]:
    yield from why_tables(run)
    if len(frames["cost"]):
        yield from _of_times(run, timed, frames, brief=brief)
    if len(frames["discrepancy"]):
        note = _DISCREPANCY + (_LOSS if known(run, LOSS) or known(run, NORM) else "")
        yield from _by_workload("Discrepancy", discrepancy_table(run, frames["discrepancy"]), note, common=["loss"])
    if len(frames["norms"]):
        yield from _by_workload("Norms by parameter group", norms_table(run, frames["norms"]), _NORMS)
    memory = _MEMORY.get(str(run.environment.get("device")), "")
    for name, title, table, note in (
        ("trade", "Trade", trade_table, _TRADE + memory),
        ("prediction", "Prediction", prediction_table, _PREDICTION),
        ("pairwise", "Pairwise", pairwise_table, _PAIRWISE),
        ("drift", "Drift", drift_table, _DRIFT.format(run.config.drift.steps)),
    ):
        if len(frames[name]):
            yield from _by_workload(title, table(frames[name]), note)
    devices = device_table(run)
    if len(devices):
        yield from _by_workload("GPUs", devices, DEVICES)
    yield from collective_tables(frames["collectives"], run.nccl, brief=brief, unmeasured=unmeasured(run))
    yield from nccl_tables(run)
    yield from probe_tables(run)
    yield from trace_tables(run)
    yield from failure_tables(run)
    unfinished = _not_measured(run)
    if len(unfinished):
        yield Table("Cases without numbers", unfinished)


def _of_times(run: Run, timed: Timing, frames: dict[str, pd.DataFrame], *, brief: bool) -> Iterator[Table]:
    clocks = _CLOCKS.get(str(run.environment.get("device")), "")
    clocks += _QUEUED if CUDA_QUEUED in set(timed.phases["clock"]) else ""
    costs = cost_table(frames["cost"], short(frames["cautions"]), brief=brief)
    yield from _by_workload("Cost", costs, (_MEDIANS if brief else _COST) + clocks)
    if len(frames["price"]):
        yield from _by_workload("The price of synchronization", price_table(frames["price"]), price_note(frames["price"]))
    note = _BREAKDOWN + "".join(words for phase, words in _PHASES.items() if phase in set(timed.phases.phase))
    yield from _by_workload("Where the time goes", breakdown_table(frames["cost"], timed), note)
    stragglers = straggler_table(run, timed)
    if len(stragglers) and not brief:
        yield from _by_workload("Stragglers", stragglers, _STRAGGLERS)


def _by_workload(title: str, rows: pd.DataFrame, note: str, common: Sequence[str] = ()) -> Iterator[Table]:
    """Split a table by workload. Columns of `common` stand in the title where all rows have the same text."""
    for position, (workload, group) in enumerate(rows.groupby("workload", sort=False)):
        group = group.drop(columns=["workload", "case_id"], errors="ignore")
        empty = [column for column in group.columns if (group[column] == "").all()]
        same = [column for column in common if column not in empty and group[column].nunique() == 1]
        shared = "".join(f"; {column} {group[column].iloc[0]}" for column in same)
        yield Table(f"{title}: {workload}{shared}", group.drop(columns=empty + same), "" if position else note)


def _pictures(run: Run, traded: pd.DataFrame, swept: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG); matplotlib takes half a second."""
    if len(traded):
        from harness.report.picture import pictures

        for workload, picture in pictures(traded, resident=run.environment.get("device") == "cpu"):
            yield f"trade-{file_name(workload)}.png", picture
    if len(run.budget):
        from harness.report.waterfall import waterfalls

        drawn = waterfalls(run)
        if drawn:
            yield "budget.png", drawn
    if len(swept):
        from harness.report.bandwidth_picture import bandwidth

        yield "busbw.png", bandwidth(swept)
    if (run.observations.probe.astype(str) == SUMMATION_ORDER).any():
        from harness.report.order_picture import orders

        trees = orders(run.observations)
        if trees:
            yield "summation_order.png", trees


def _not_measured(run: Run) -> pd.DataFrame:
    unmeasured = run.cases[run.cases.status != OK]
    rows = [(case.case_id, case.status, case.reason) for case in unmeasured.itertuples()]
    rows += [(name, "missing", _ended_before(run, name)) for name in run.missing[:_MOST_MISSING]]
    more = len(run.missing) - _MOST_MISSING
    rows += [(f"and {more} more", "missing", "")] * (more > 0)
    return pd.DataFrame(rows, columns=["case", "status", "reason"])


def _ended_before(run: Run, name: str) -> str:
    answered = int(((run.probes.probe == name) & (run.probes.status == OK)).sum())
    died = {culprit.get("case") for end in run.failures for culprit in end.get("culprits", [])}
    within = answered or name in died or f"probe {name}" in died
    kept = f"; {answered} answers are kept" if answered else ""
    return f"the run ended {'in' if within else 'before'} it{kept}"
