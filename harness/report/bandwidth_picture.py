"""The collective sweep as a picture: bus bandwidth over message size, a panel a collective."""

import io

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.collectives import of_bandwidth, way
from harness.report.text import picture_text

_WIDTH, _HEIGHT = 4.6, 4.2
"""Inches, of a panel."""
_STYLES = ("-", "--", ":", "-.")


def bandwidth(rows: pd.DataFrame) -> bytes:
    """PNG of the rows that `collectives` gives."""
    clock, kept = of_bandwidth(rows)
    panels = list(kept.groupby("collective", sort=False))
    figure = Figure(figsize=(_WIDTH * len(panels), _HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = {dtype: f"C{place % 10}" for place, dtype in enumerate(dict.fromkeys(kept.dtype))}
    styles = {number: _STYLES[place % len(_STYLES)] for place, number in enumerate(dict.fromkeys(kept.in_flight))}
    for panel, (collective, group) in zip(axes, panels, strict=True):
        _draw(panel, group, colours, styles)
        _furnish(panel, str(collective))
    axes[0].set_ylabel(f"busbw, GB/s ({clock})")
    named = dict(pair for panel in axes for pair in zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=4, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(panel: Axes, group: pd.DataFrame, colours: dict[str, str], styles: dict[int, str]) -> None:
    """Colour tells the dtype, the line the number in flight, and a hollow marker what is out of place."""
    for (dtype, in_place, in_flight), rows in group.groupby(["dtype", "in_place", "in_flight"], sort=False):
        own = rows.sort_values("bytes")
        face = colours[dtype] if in_place else "white"
        panel.plot(
            *(own.bytes, own.busbw_gbs),
            label=picture_text(f"{dtype} {way(in_place, in_flight)}"),
            color=colours[dtype],
            linestyle=styles[in_flight],
            marker="o",
            markersize=4,
            markerfacecolor=face,
        )


def _furnish(panel: Axes, title: str) -> None:
    panel.set_title(picture_text(title))
    panel.set_xlabel("bytes of the message")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.grid(linewidth=0.4, alpha=0.6)
    panel.spines[["top", "right"]].set_visible(False)
