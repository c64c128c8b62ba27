"""The orders of a sum over ranks as a picture: a tree a panel, ranks below, additions above."""

import io
import re
from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report.probes import SUMMATION_ORDER
from harness.report.text import picture_text

_WIDTH, _HEIGHT, _ACROSS, _MOST = 3.2, 2.8, 4, 8
"""Inches of a panel; panels in a row; panels in all."""
_TOKEN = re.compile(r"\d+|[()+]")
Tree = int | tuple["Tree", ...]


def orders(observations: pd.DataFrame) -> bytes | None:
    """PNG of the orders in the largest message of the first dtype; None where no order was seen."""
    own = observations[(observations.probe.astype(str) == SUMMATION_ORDER) & (observations["rank"] == 0)]
    counted = own[own.quantity == "elements"]
    counted = counted[counted.setting.map(lambda setting: parse(str(setting)) is not None)]
    if counted.empty:
        return None
    subject = counted.groupby(counted.subject.astype(str), sort=False).value.sum().idxmax()
    rows = counted[counted.subject.astype(str) == subject]
    return _drawn(str(subject), [(str(row.setting), int(row.value)) for row in rows.head(_MOST).itertuples()])


def parse(text: str) -> Tree | None:
    """`(1 + 0) + 2` as nested tuples; None where it is no tree."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", ""):
        return None
    try:
        tree = _sum(tokens)
    except (IndexError, ValueError, RecursionError):
        return None
    return tree if not tokens and isinstance(tree, tuple) else None


def _sum(tokens: list[str]) -> Tree:
    terms = [_term(tokens)]
    while tokens and tokens[0] == "+":
        tokens.pop(0)
        terms.append(_term(tokens))
    return terms[0] if len(terms) == 1 else tuple(terms)


def _term(tokens: list[str]) -> Tree:
    token = tokens.pop(0)
    if token != "(":
        return int(token)
    inside = _sum(tokens)
    if tokens.pop(0) != ")":
        raise ValueError("a bracket is not closed")
    return inside


def _drawn(title: str, found: list[tuple[str, int]]) -> bytes:
    across = min(len(found), _ACROSS)
    down = -(-len(found) // across)
    figure = Figure(figsize=(_WIDTH * across, _HEIGHT * down + 0.4), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    total = sum(elements for _, elements in found)
    for panel, (order, elements) in zip(panels, found, strict=False):
        _draw(panel, parse(order))
        panel.set_title(f"{elements:,} of {total:,} elements", fontsize=9)
    figure.suptitle(picture_text(title), fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(panel: Axes, tree: Tree | None) -> None:
    """Every addition is a bar over what it adds, as high as its last operand was late."""
    if tree is not None:
        _place(panel, tree, iter(range(len(list(_ranks(tree))))))


def _place(panel: Axes, tree: Tree, places: Iterator[int]) -> tuple[float, int]:
    """Draw a subtree; returns the middle and the height of its bar."""
    if isinstance(tree, int):
        place = next(places)
        panel.text(place, -0.15, str(tree), ha="center", va="top", fontsize=9)
        return place, 0
    below = [_place(panel, child, places) for child in tree]
    height = 1 + max(high for _, high in below)
    for middle, high in below:
        panel.plot([middle, middle], [high, height], color="C0", linewidth=1.4)
    panel.plot([below[0][0], below[-1][0]], [height, height], color="C0", linewidth=1.4)
    return (below[0][0] + below[-1][0]) / 2, height


def _ranks(tree: Tree) -> Iterator[int]:
    if isinstance(tree, int):
        yield tree
        return
    for child in tree:
        yield from _ranks(child)
