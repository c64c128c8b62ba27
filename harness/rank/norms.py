"""Norms by group of parameters, from sums that a comparison has already made."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from harness.numerics.discrepancy import Discrepancy as Sums
from harness.schema.record import Norm


def group_of(parameter: str) -> str:
    """The module that a parameter belongs to: its name up to the first number, else the first part of it.

    `layers.17.attn.weight` is of `layers.17`, `head.weight` of `head`; a parameter at the top level is its own group.
    """
    parts = parameter.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdecimal()), 0)
    return ".".join(parts[: number + 1])


def norms(case_id: str, whole: Sums, parameters: Mapping[str, Sums]) -> list[Norm]:
    """One row for the whole gradient, and one a group in the order of the model."""
    groups: defaultdict[str, Sums] = defaultdict(Sums)
    for name, sums in parameters.items():
        groups[group_of(name)] += sums
    return list(_rows(case_id, [("", whole), *groups.items()]))


def _rows(case_id: str, groups: Iterable[tuple[str, Sums]]) -> Iterable[Norm]:
    for group, sums in groups:
        yield Norm(case_id, group, sums.count, sums.value_l2, sums.against_l2, sums.l2, sums.relative_l2)
