"""A rank that fails keeps no other one waiting: the case fails on all ranks at once, and the next one is measured.

No test asserts a time. Without the means under test the ranks wait for deadline_s, which is 300 s, and say so.
"""

from pathlib import Path

import pytest

from tests.conftest import Measure
from tests.running import launch
from tests.worlds.pool import Pool

HANG_S = 120.0
WAYS = ["in_all_reduce", "in_flight", "in_subgroup", "in_backward"]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_others_are_freed_and_the_next_group_works(worlds: Pool, ranks: int) -> None:
    """In a collective of all, beside one that is in flight and kept, in one of a part of the ranks, and in backward."""
    found = worlds.run(ranks, "tests.worlds.failing:freed", WAYS, timeout_s=HANG_S)
    for way in WAYS:
        (reason,) = {reason for reason, _ in found[way]}
        causes, _, waited = reason.partition("; ")
        assert causes.startswith(f"rank {ranks - 1}: MemoryError: planted (in failing.py:"), way
        assert waited.count("waited meanwhile") == ranks - 1, f"{way}: {reason}"
        assert "Connection closed" not in reason
        assert [total for _, total in found[way]] == [ranks] * ranks, f"{way}: the new group sums over all"


@pytest.mark.parametrize("ranks", [3])
def test_guards_free_who_waits_in_torchs_default_group(worlds: Pool, ranks: int) -> None:
    found = worlds.run(ranks, "tests.worlds.failing:freed_by_guards", timeout_s=HANG_S)
    (reason,) = {reason for reason, _ in found}
    assert reason.startswith("rank 2: MemoryError: planted")
    assert reason.count(": waited meanwhile in all_reduce at failing.py:") == 2


MODULE = """
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from harness.axes.aggregation.base import FollowingSync

CALLS = 0


class Failing(FollowingSync):
    def issue_all(self, gradients, fabric):
        for place, gradient in enumerate(gradients):
            if place == 1 and dist.get_rank() == 1:
                torch.empty(2**50, device=gradient.device)
            fabric.issue(partial(dist.all_reduce, gradient, group=fabric.group))


def load():
    return torch.randn(64, 10), torch.randn(64, 1)


class DefaultGroup(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 1)

    def forward(self, inputs):
        global CALLS
        CALLS += 1
        if CALLS > 12:
            if dist.get_rank() == 1:
                raise ValueError("planted")
            dist.all_reduce(torch.zeros(1))
        return self.layer(inputs)
"""
AGGREGATION = "failing: {_target_: planted_failure.Failing}\n"
WORKLOAD = """
default_group:
  _target_: harness.axes.workload.base.Workload
  model: {_target_: planted_failure.DefaultGroup, _partial_: true}
  loss: {_target_: torch.nn.MSELoss, _partial_: true}
  data: {_target_: planted_failure.load, _partial_: true}
"""
CASES = ("workload=[mlp_digits]", "reduction=[mean]", "aggregation=[failing,all_reduce]", "iterations=2", "warm_up=1")
"""Rank 1 runs out of memory in the first; the second has nothing to do with it."""


def plant(folder: Path) -> tuple[str, str]:
    """Write an aggregation in which rank 1 runs out of memory, and a model in which it fails; return the options for them."""
    for axis, option, text in (("aggregation", "failing", AGGREGATION), ("workload", "default_group", WORKLOAD)):
        (folder / axis).mkdir()
        (folder / axis / f"{option}.yaml").write_text(text)
    (folder / "planted_failure.py").write_text(MODULE)
    return "--config-dir", str(folder)


def test_a_case_fails_on_all_ranks_and_the_next_is_measured_in_the_same_world(measure: Measure, tmp_path: Path) -> None:
    run = measure(*plant(tmp_path), *CASES)
    failed, measured = (run.cases[run.cases.aggregation == name].iloc[0] for name in ("failing", "all_reduce"))
    assert (failed.status, measured.status) == ("failed", "ok")
    assert failed.reason.startswith("rank 1 on ")
    assert "; rank 0 on " in failed.reason
    assert failed.reason.endswith("in phase aggregate: waited meanwhile")


@pytest.mark.full
def test_a_world_whose_default_group_is_lost_is_started_again(tmp_path: Path) -> None:
    asked = ("workload=[default_group,mlp_digits]", "reduction=[mean]", "torchrun.nproc_per_node=2", f"results_dir={tmp_path}")
    (tmp_path / "planted").mkdir()
    done = launch(*plant(tmp_path / "planted"), *asked)
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "rank 1 on " in said and "phase forward: ValueError: planted" in said
    assert "waited meanwhile in all_reduce at planted_failure.py:" in said
    assert "ended with BrokenGroupError: after this failure torch's default process group cannot be used any more" in said
    assert "1 of 1 measured cases" in said
