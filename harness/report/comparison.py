"""Two sides held against each other, case by case."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import inf, isnan, nan

import pandas as pd

from harness.report.norms import LOSS, NORM
from harness.report.sides import (
    DISCREPANCY,
    FIGURES,
    MEMORY,
    TIME,
    Key,
    Side,
    check_orders,
    differences,
    frame_of,
    in_turn,
    names_of,
)
from harness.report.verdict import EQUAL, LESS, MORE, Ratio, judge, judge_exact, judge_figure
from harness.schema.case import AXES
from harness.schema.refusal import RefusedError

WORDS = {
    TIME: {MORE: "slower", LESS: "faster"},
    MEMORY: {MORE: "more", LESS: "less"},
    DISCREPANCY: {MORE: "further", LESS: "closer"},
    LOSS: {MORE: "higher", LESS: "lower"},
    NORM: {MORE: "higher", LESS: "lower"},
}
"""What MORE and LESS are called of each metric; `same` and `unclear` are called so of all."""
_RATIO = [field.name for field in fields(Ratio)]


@dataclass(frozen=True)
class Comparison:
    """What two sides say of the cases that they have in common, and what they do not have in common."""

    base: Side
    new: Side
    cases: pd.DataFrame
    """One row a case of either side: its axes and parameters."""
    rows: pd.DataFrame
    """One row a case that both sides measured, and metric: `case`, its place in `cases`; metric; the fields of Ratio, with the
    metric's own word as verdict; of FIGURES also `difference`, new less base over |base|, and of a gradient's norm that is not
    equal `moved_most`, the group of parameters whose norm has moved most, with its relative difference. These columns are
    there if a figure is."""
    apart: dict[int, str]
    """Why a case is not compared, by its place in `cases`."""
    lost: list[int]
    """Places of cases that base measured, and of which new has an outcome without numbers."""
    in_turn: bool
    """Whether the launches of the sides alternated, at least in part."""
    differences: pd.DataFrame
    """What of configuration and environment differs: key, base, new."""

    @cached_property
    def names(self) -> pd.Series:
        """Each of `cases` in words."""
        return names_of(self.cases).agg(" ".join, axis=1)


def compare(base: Side, new: Side, again: Side | None, *, margin: float, phases: bool) -> Comparison:
    """Raises RefusedError for sides that share a run or no case, or whose runs took their cases in unlike orders."""
    _check(base, new)
    common = [key for key in base.measured if key in set(new.measured)]
    if not common:
        raise RefusedError("the runs have no case in common that both measured; --across AXIS leaves an axis out of account")
    check_orders(base, new)
    apart = {key: why for key, why in _apart(base, new) if key not in common}
    places = {key: place for place, key in enumerate([*common, *apart])}
    rows = [
        {
            "case": places[key],
            "metric": metric,
            **asdict(ratio),
            "verdict": word(metric, ratio.verdict),
            **(_of_figure(key, metric, ratio, base, new) if metric in FIGURES else {}),
        }
        for key in common
        for metric, ratio in _ratios(key, base, new, again, margin=margin, phases=phases)
    ]
    return Comparison(
        base=base,
        new=new,
        cases=frame_of(list(places)),
        rows=pd.DataFrame(rows) if rows else pd.DataFrame(columns=["case", "metric", *_RATIO]),
        apart={places[key]: why for key, why in apart.items()},
        lost=[places[key] for key in base.measured if key in new.keys and key in apart],
        in_turn=in_turn(base, new),
        differences=differences(base, new),
    )


def word(metric: str, verdict: str) -> str:
    """A verdict in the metric's own terms."""
    return WORDS[metric.split(".")[0]].get(verdict, verdict)


def check_across(axis: str, base: Side, new: Side) -> None:
    """Raises RefusedError unless each side has one option on the axis."""
    if axis not in AXES:
        raise RefusedError(f"--across {axis}: no such axis; expected one of {', '.join(AXES)}")
    for name, side in (("base", base), ("new", new)):
        if len(side.options(axis)) != 1:
            count = len(side.options(axis))
            raise RefusedError(f"--across {axis}: {name} has {count} options of it; expected one on each side")


def _check(base: Side, new: Side) -> None:
    both = {run.path for run in base.runs} & {run.path for run in new.runs}
    if both:
        raise RefusedError(f"{both.pop()} stands on both sides: a run is always equal to itself")


def _ratios(key: Key, base: Side, new: Side, again: Side | None, *, margin: float, phases: bool) -> Iterator[tuple[str, Ratio]]:
    ours, theirs = base.launches(key, phases=phases), new.launches(key, phases=phases)
    spread = again.launches(key, phases=phases) if again and key in again.measured else {}
    for metric in ours:
        if metric not in theirs:
            continue
        if metric in FIGURES:
            yield metric, judge_figure(ours[metric], theirs[metric], margin=margin)
        elif metric == DISCREPANCY:
            yield metric, judge_exact(ours[metric], theirs[metric], margin=margin)
        else:
            yield metric, judge(ours[metric], theirs[metric], margin=margin, again=spread.get(metric))


def _of_figure(key: Key, metric: str, ratio: Ratio, base: Side, new: Side) -> dict[str, object]:
    group, moved = _moved_most(base.norms(key), new.norms(key)) if metric == NORM and ratio.verdict != EQUAL else ("", nan)
    return {"difference": _relative(ratio.base, ratio.new), "moved_most": group, "moved_most_difference": moved}


def _moved_most(base: pd.Series, new: pd.Series) -> tuple[str, float]:
    """Group of parameters, and its norm's relative difference; empty where no group is known on both sides, or none moved."""
    both = pd.concat([base, new], axis=1, join="inner", keys=["base", "new"])
    apart = (both.new - both.base).abs()
    apart = apart.where(apart.notna() | (both.base.isna() & both.new.isna()), inf).fillna(0.0)
    if both.empty or not apart.max():
        return "", nan
    group = str(apart.idxmax())
    return group, _relative(both.base[group], both.new[group])


def _relative(base: float, new: float) -> float:
    if base == new or (isnan(base) and isnan(new)):
        return 0.0
    return (new - base) / abs(base) if base else inf if new > 0 else -inf


def _apart(base: Side, new: Side) -> Iterator[tuple[Key, str]]:
    for name, side, other in (("base", base, new), ("new", new, base)):
        for key in side.keys:
            if key not in other.keys:
                yield key, f"in {name} only"
            elif key not in side.measured:
                yield key, f"{name}: {side.why_not(key)}"
