"""The discrepancy budget as a picture: step after step from the full-batch float64 gradient to the case's."""

import io
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.distance import as_distance
from harness.report.frame import Run
from harness.report.text import number, picture_text
from harness.schema.record import CLEAN

_WIDTH, _HEIGHT, _ACROSS, _MOST = 5.2, 3.4, 2, 6
"""Inches of a panel; panels in a row; panels in all."""
_ROOM = 0.18
"""For the number beside the last bar."""
_FORWARD, _BACK = "C0", "C1"
_TITLE = 60
_WIDEST = 1e6
"""Largest share that is drawn."""


def waterfalls(run: Run) -> bytes | None:
    """PNG of the furthest case of each verdict and cause, those that something is wrong with first; None without a budget."""
    budgets = run.budget.assign(case_id=run.budget.case_id.astype(str))
    budgets = budgets[np.isfinite(budgets.share)]
    budgets = budgets[budgets.case_id.isin(set(run.diagnoses.case_id.astype(str)))]
    if budgets.empty:
        return None
    told = run.diagnoses.assign(case_id=run.diagnoses.case_id.astype(str), clean=run.diagnoses.verdict.isin(CLEAN))
    told = told[told.case_id.isin(set(budgets.case_id))].assign(distance=as_distance(told.distance))
    told = told.sort_values(["clean", "distance"], ascending=[True, False])
    chosen = told.drop_duplicates(["verdict", "cause"]).head(_MOST)
    across = min(len(chosen), _ACROSS)
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(_WIDTH * across, _HEIGHT * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[len(chosen) :]:
        panel.axis("off")
    for panel, row in zip(panels, chosen.itertuples(), strict=False):
        _draw(panel, budgets[budgets.case_id == row.case_id])
        name = "\n".join(textwrap.wrap(picture_text(str(row.case_id)).replace(".", ". "), _TITLE))
        panel.set_title(f"{name}\n{str(row.verdict).replace('_', ' ')}, {number(float(str(row.distance)))} away", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(panel: Axes, steps: pd.DataFrame) -> None:
    """Each bar begins where the last one ended; all together reach 100 %."""
    reached = 0.0
    names, shares = (
        list(steps.stage.astype(str).map(picture_text)),
        [min(max(float(share), -_WIDEST), _WIDEST) for share in steps.share],
    )
    for place, share in enumerate(shares):
        panel.barh(place, share, left=reached, color=_FORWARD if share >= 0 else _BACK, height=0.6)
        panel.annotate(
            f"{round(share, 3) + 0.0:.1%}",
            (max(reached, reached + share), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        reached += share
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.invert_yaxis()
    panel.axvline(0, color="0.6", linewidth=0.8)
    panel.axvline(1, color="0.6", linewidth=0.8, linestyle=":")
    low, high = panel.dataLim.x0, panel.dataLim.x1
    panel.set_xlim(min(low, 0) - 0.02, max(high, 1) + _ROOM)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set_xlabel("share of the distance from the full-batch float64 gradient", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
