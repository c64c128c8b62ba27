"""The trade as a picture: one panel for time, one for memory, one for the distance from the true gradient."""

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.labels import axis_of
from harness.report.text import picture_text
from harness.report.trade import labels_of
from harness.schema.case import TABLE

_EXACT = 1e-17
"""Where an exact zero stands on an axis of powers of ten: left of everything that rounding leaves."""
_NOT_FINITE = 1e4
"""Where NaN and infinity stand on an axis of powers of ten: right of everything."""
_NOISE_MIB = 24
"""Between equal cases of small models; a gradient of that size is the least whose buffers are seen."""
_MARKERS = "osD^vP*XhdsoD"
_PANELS = (
    ("step_s", 1e3, "median step of the slowest rank, ms"),
    ("above_baseline_bytes", 2**-20, "peak memory above the baseline, MiB"),
    ("relative_l2", 1.0, "relative L2 from the reference"),
)
_WIDTH, _ROW, _FRAME = 13.0, 0.32, 1.9
"""Inches: of the whole, of a row, and of what stands above and below the rows."""


def pictures(rows: pd.DataFrame, *, resident: bool) -> Iterator[tuple[str, bytes]]:
    """(workload, PNG) of each workload; `rows` as `trade` gives them. resident: whether memory is the resident set."""
    for workload, group in rows.groupby("workload", sort=False):
        yield str(workload), _png(_draw(str(workload), group, resident))


def _draw(workload: str, rows: pd.DataFrame, resident: bool) -> Figure:
    """A row a way of aggregating; what else varies is told by colour and marker."""
    ways, kinds = _names(rows, aggregation=True), _names(rows, aggregation=False)
    places = {way: place for place, way in enumerate(reversed(dict.fromkeys(ways)))}
    figure = Figure(figsize=(_WIDTH, _FRAME + _ROW * len(places)), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for panel, (column, factor, title) in zip(panels, _PANELS, strict=True):
        for index, kind in enumerate(dict.fromkeys(kinds)):
            own = kinds == kind
            values = rows[column][own] * factor
            if column == "relative_l2":
                values = values.where(np.isfinite(values), _NOT_FINITE).clip(lower=_EXACT)
            style = {"marker": _MARKERS[index % len(_MARKERS)], "color": f"C{index % 10}", "alpha": 0.75}
            panel.scatter(values, ways[own].map(places), label=kind or "all cases", s=34, **style)
        if resident and column == "above_baseline_bytes":
            panel.axvspan(-_NOISE_MIB, _NOISE_MIB, color="grey", alpha=0.15, linewidth=0)
            title += "\n(grey: not told from the resident set's own movement)"
        if column == "relative_l2" and not np.isfinite(rows[column]).all():
            panel.axvline(_NOT_FINITE, color="red", linewidth=0.8, linestyle=":")
            title += "\n(dotted: not finite)"
        _furnish(panel, title, logarithmic=column == "relative_l2")
    panels[0].set_yticks(list(places.values()), list(places))
    figure.suptitle(f"{picture_text(workload)}: what a way of aggregating takes, and where it leads")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    return figure


def _furnish(panel: Axes, title: str, *, logarithmic: bool) -> None:
    panel.set_xlabel(title)
    panel.grid(axis="both", linewidth=0.4, alpha=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    if logarithmic:
        panel.set_xscale("log")
        panel.margins(x=0.1)
    else:
        panel.set_xlim(left=min(0.0, panel.get_xlim()[0]))


def _names(rows: pd.DataFrame, *, aggregation: bool) -> pd.Series:
    """The labels that say how gradients are aggregated, or all others, as one text a case."""
    own = [c for c in labels_of(rows) if c != "workload" and TABLE[axis_of(c)].in_sum == aggregation]
    varying = [column for column in own if rows[column].nunique() > 1]
    told = [rows[column].map(lambda value, column=column: _told(column, value)) for column in varying]
    texts = pd.concat(told, axis=1).apply(lambda cells: " ".join(filter(None, cells)), axis=1) if told else ""
    return pd.Series(texts, index=rows.index).map(picture_text)


def _told(column: str, value: str) -> str:
    if not value or "." not in column:
        return value
    return f"{column.partition('.')[2]}={value}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
