"""A baseline that is measured once stands for all cases that share it: what it depends on is in the key by which it is kept."""

from collections.abc import Callable
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.probes.control import Control
from harness.rank.alone import bare_step, on_one_rank, silent
from harness.rank.assemble import base_of
from harness.rank.compare import Comparisons
from harness.rank.footprint import Footprint
from harness.rank.rig import Parts
from harness.schema.case import AXES, Baseline, Case, Reference, kept_in

CASE = Case(*"abcdefg", nodes={axis: {"_target_": "a.B", "size": 1} for axis in AXES})
BASELINES: dict[Baseline, Callable[[Parts], Parts]] = {
    Baseline.BARE_STEP: bare_step,
    Baseline.ONE_RANK: on_one_rank,
    Baseline.WITHOUT_COMMUNICATION: silent,
}
OWN = Parts(**{axis: SimpleNamespace(needs_own_forward=False) for axis in AXES})


def kept(baseline: Baseline) -> set[str]:
    """Axes on which the step of a baseline runs the case's own option."""
    made = BASELINES[baseline](OWN)
    return {field.name for field in fields(made) if getattr(made, field.name) is getattr(OWN, field.name)}


def test_every_baseline_is_tried() -> None:
    assert set(BASELINES) == set(Baseline)


@pytest.mark.parametrize("baseline", Baseline, ids=lambda baseline: baseline.name)
def test_a_baseline_keeps_the_options_that_the_table_says(baseline: Baseline) -> None:
    assert kept(baseline) == set(kept_in(baseline))


class Kept:
    """Baselines as a run keeps them, each measured as a new number."""

    def __init__(self) -> None:
        control = Control(None, 0, 1)
        self.saved = dict[str, Any]()
        store: Any = SimpleNamespace(save=self.saved.__setitem__)
        self.footprint, self.comparisons = Footprint(control), Comparisons(control, store, references=SimpleNamespace())  # type: ignore[arg-type]

    def look_up(self, baseline: Baseline, case: Case) -> object:
        number = object()
        measured = SimpleNamespace(taken_memory_bytes=number, gradient=number)
        step = SimpleNamespace(measure=lambda enter: measured, skip_reason=lambda: None)
        world = SimpleNamespace(device=torch.device("cpu"))
        trial: Any = SimpleNamespace(world=world, bare=lambda: step, alone=lambda: step)
        if baseline is Baseline.BARE_STEP:
            return self.footprint.bare(case, trial)
        return self.saved[self.comparisons._single_rank(case, trial) or ""]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("baseline", [Baseline.BARE_STEP, Baseline.ONE_RANK], ids=lambda baseline: baseline.name)
def test_cases_share_a_baseline_that_does_not_depend_on_what_they_differ_in(baseline: Baseline, axis: str) -> None:
    """Another option, and another value of its parameter."""
    found = Kept()
    of_case = found.look_up(baseline, CASE)
    assert found.look_up(baseline, CASE) is of_case
    for other in (
        replace(CASE, **{axis: "other"}),
        replace(CASE, nodes={**CASE.nodes, axis: {"_target_": "a.B", "size": "1"}}),
    ):
        assert (found.look_up(baseline, other) is not of_case) == (axis in kept(baseline)), other


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("reference", Reference, ids=lambda reference: reference.name)
def test_cases_share_a_reference_that_does_not_depend_on_what_they_differ_in(reference: Reference, axis: str) -> None:
    """`harness/rank/reference.py` takes workload and shards alone; rounding and clipping are in other keys."""
    named: Any = SimpleNamespace(full_batch=lambda key, *rest: key, shard_wise=lambda key, *rest: key)
    found = Comparisons(Control(None, 0, 1), store=None, references=named)  # type: ignore[arg-type]
    cut = SimpleNamespace(spans_ranks=True, shards=list)
    trial: Any = SimpleNamespace(cut=cut, material=None, parts=SimpleNamespace(batchnorm=SimpleNamespace(synced=False)))

    def key(case: Case) -> str:
        return found._full_batch(case, trial) if reference is Reference.FULL_BATCH else found._reference(case, trial)

    needed = {Reference.SHARD_WISE: {"workload", "sharding"}, Reference.FULL_BATCH: {"workload"}}[reference]
    other = replace(CASE, **{axis: "other"})
    assert key(CASE) == key(replace(CASE))
    assert (key(other) != key(CASE)) == (axis in needed)


@pytest.mark.parametrize("baseline", Baseline, ids=lambda baseline: baseline.name)
def test_options_without_effect_are_of_their_axis(baseline: Baseline) -> None:
    made = BASELINES[baseline](OWN)
    replaced = set(AXES) - kept(baseline)
    assert {axis for axis in replaced if isinstance(getattr(made, axis), base_of(axis))} == replaced
