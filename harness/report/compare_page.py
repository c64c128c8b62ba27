"""A comparison for a person: on the terminal, as compare.md, and as CSV."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from harness.report.comparison import Comparison, word
from harness.report.gates import BROKEN, KEPT, UNTOLD, Judged
from harness.report.norms import LOSS, NORM, digits
from harness.report.sides import DISCREPANCY, FIGURES, MEMORY, TIME, names_of
from harness.report.tables import Table, escape
from harness.report.text import mebibytes, milliseconds, number
from harness.report.verdict import EQUAL, LESS, MORE, SAME, UNCLEAR, fewest_launches
from harness.schema.text import plain

_NOTES = {
    TIME: (
        "Step of the slowest rank in each iteration; the median of a launch is its one number, and launches are held against "
        "launches. Ratio: new over base, with the 95 % interval. Shows from: the least slow-down that launches as scattered as "
        "these could show. The sides are to be measured in turn: a drift of the machine would look like a difference."
    ),
    MEMORY: "Peak of the rank that takes the most: resident set on the CPU, allocated device memory on CUDA.",
    DISCREPANCY: (
        "Relative L2 of the whole gradient from the float64 reference, of the rank that is furthest. Where every launch "
        "repeats it, one launch tells it."
    ),
    LOSS: (
        "Mean loss of the compared batch, as the step computes it. Difference: new less base, over base; equal: to the last "
        "bit."
    ),
    NORM: (
        "L2 norm of rank 0's gradient. Difference: new less base, over base. Moved most: the group of parameters whose norm "
        "has moved most, and by how much."
    ),
}
_MOST_GATES = 2000
"""Number of gates and cases on the page; the JSON and the JUnit file contain all."""
_UNITS: dict[str, tuple[str, Callable[[float], str]]] = {
    TIME: ("ms", milliseconds),
    MEMORY: ("MiB", mebibytes),
    DISCREPANCY: ("", number),
    LOSS: ("", digits),
    NORM: ("", digits),
}


def headlines(compared: Comparison, judged: Sequence[Judged]) -> list[str]:
    """How many cases are what."""
    lines = []
    for metric, rows in compared.rows.groupby("metric", sort=False):
        counts = rows.verdict.value_counts()
        accepted = (MORE, LESS, EQUAL, SAME, UNCLEAR) if metric in FIGURES else (MORE, LESS, SAME, UNCLEAR)
        words = [word(str(metric), verdict) for verdict in accepted]
        lines.append(f"{metric}: " + ", ".join(f"{counts.get(each, 0)} {each}" for each in words) + f" of {len(rows)} cases.")
    measured = compared.rows[~compared.rows.metric.isin([*FIGURES, DISCREPANCY])]
    undecided = ", ".join(dict.fromkeys(measured.metric[measured.low.isna()]))
    if undecided:
        few = fewest_launches()
        lines.append(
            f"Too few launches for a verdict on {undecided}: each side needs {few} at least (launches={few}, or several runs)."
        )
    if not compared.in_turn:
        lines.append("All launches of one side came before those of the other: a drift of the machine looks like a difference.")
    return [*lines, counted(judged)] if judged else lines


def counted(judged: Sequence[Judged]) -> str:
    """How many gates are what."""
    counts = Counter(one.outcome for one in judged)
    return "Gates: " + ", ".join(f"{counts[each]} {each}" for each in (BROKEN, KEPT, UNTOLD)) + "."


def tables(compared: Comparison, judged: Sequence[Judged]) -> Iterator[Table]:
    """Everything there is to say."""
    if judged:
        yield gate_table(judged)
    labels = names_of(compared.cases)
    for metric, rows in compared.rows.groupby("metric", sort=False):
        kind = str(metric).split(".")[0]
        shown = pd.concat([labels.loc[rows.case].reset_index(drop=True), _cells(rows.reset_index(drop=True), kind)], axis=1)
        yield Table(str(metric), shown, _NOTES[kind] if metric == kind else "")
    if len(compared.apart):
        yield Table("Not compared", labels.loc[list(compared.apart)].assign(why=list(compared.apart.values())))
    if len(compared.differences):
        yield Table("What differs between the sides", compared.differences)


def gate_table(judged: Sequence[Judged]) -> Table:
    """Broken gates first, then what cannot be told."""
    order = {BROKEN: 0, UNTOLD: 1, KEPT: 2}
    rows = sorted((vars(one) for one in judged), key=lambda one: order[one["outcome"]])
    more = len(rows) - _MOST_GATES
    rows = rows[:_MOST_GATES] + [{"gate": f"and {more} more", "case": "", "outcome": "", "why": ""}] * (more > 0)
    return Table("Gates", pd.DataFrame(rows, columns=["gate", "case", "outcome", "why"]))


def show(lines: Sequence[str], shown: Sequence[Table], console: Console) -> None:
    """For a terminal."""
    console.print()
    for line in lines:
        console.print(Text(plain(line), style="bold"))
    for table in shown:
        table.print(console)


def page(title: str, lines: Sequence[str], shown: Sequence[Table]) -> bytes:
    """As Markdown."""
    return "\n\n".join([f"# {escape(title)}", *map(escape, lines), *(table.markdown() for table in shown)]).encode()


def long_frame(compared: Comparison) -> pd.DataFrame:
    """For compare.csv: one row a case and metric, with the axes and parameters of the case."""
    rows = compared.rows
    return pd.concat([compared.cases.loc[rows.case].reset_index(drop=True), rows.drop(columns="case")], axis=1)


def _cells(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    if kind in FIGURES:
        return _figures(rows)
    unit, spelled = _UNITS[kind]
    with_unit = f", {unit}" if unit else ""
    return pd.DataFrame(
        {
            f"base{with_unit}": rows.base.map(spelled),
            f"new{with_unit}": rows.new.map(spelled),
            "ratio": [_interval(row.ratio, row.low, row.high) for row in rows.itertuples()],
            "verdict": rows.verdict,
            "shows from": rows.detectable.map(lambda share: "" if math.isnan(share) else f"{share:+.1%}" if share else "any"),
            "launches": [f"{row.base_launches}, {row.new_launches}" for row in rows.itertuples()],
        }
    )


def _figures(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of the figures; their relative difference has a column of its own, with three digits."""
    pairs = zip(rows.moved_most.fillna(""), rows.moved_most_difference.map(_share), strict=True)
    moved = pd.Series([f"{group}: {share}" if group else "" for group, share in pairs], rows.index)
    columns = {
        "base": rows.base.map(digits),
        "new": rows.new.map(digits),
        "difference": rows.difference.map(_share),
        **({"moved most": moved} if moved.any() else {}),
        "verdict": rows.verdict,
        "launches": [f"{row.base_launches}, {row.new_launches}" for row in rows.itertuples()],
    }
    return pd.DataFrame(columns)


def _share(difference: float) -> str:
    return "NaN" if math.isnan(difference) else f"{difference:+.2e}" if difference else "0"


def _interval(ratio: float, low: float, high: float) -> str:
    if math.isnan(low):
        return f"{ratio:.3f}"
    return f"{ratio:.3f}" if low == high else f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
