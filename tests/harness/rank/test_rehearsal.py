"""Replay of finished cases in a resumed run: failures and quarantine."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from harness.probes.control import Control
from harness.rank.agreement import CaseFailedError
from harness.rank.compare import Comparisons
from harness.rank.drift import Drifts
from harness.rank.process_group import World
from harness.rank.progress import Row
from harness.rank.rehearsal import Rehearsal
from harness.rank.trial import Trial
from harness.schema.case import Case
from harness.schema.matrix import expand_cases
from harness.schema.rank_state import RankState, RankStatus, this_machine
from harness.schema.record import FAILED, OK
from launch.compose import compose_config

OVERRIDES = ["workload=[mlp_digits]", "reduction=[sum,mean,none]", "sharding=[even,uneven]"]


class Groups:
    """The part of a world that a trial needs."""

    def __init__(self) -> None:
        self.rank, self.control, self.rebuilt, self.checked = 0, Control(None, 0, 1), 0, 0

    def rebuild_measured(self) -> None:
        """Count the calls."""
        self.rebuilt += 1

    def check_default(self) -> None:
        """Count the calls that follow one of `rebuild_measured`."""
        self.checked = self.rebuilt


@pytest.fixture
def state(tmp_path: Path) -> RankState:
    state = RankState(tmp_path / "0.state", RankStatus(0, os.getpid(), socket.gethostname(), this_machine()))
    state.update(case="the case that waits")
    return state


def rehearsal(groups: Groups, state: RankState, standing: dict[Case, Row], aside: dict[str, str]) -> Rehearsal:
    unused = None  # no trial gets as far as its comparisons and drifts
    return Rehearsal(cast(World, groups), state, cast(Comparisons, unused), cast(Drifts, unused), standing, aside)


def test_a_failed_replay_is_reported_only_in_its_own_setting(state: RankState) -> None:
    cases = expand_cases(compose_config(OVERRIDES, nproc_per_node=2))
    finished, failed, waiting = (case for case in cases if case.setting == cases[0].setting)
    elsewhere = next(case for case in cases if case.setting != waiting.setting)
    standing = {finished: Row(OK, 3, "ab"), failed: Row(FAILED, 0, ""), elsewhere: Row(OK, 3, "cd")}
    tried = list[tuple[Case, str]]()

    def raises(case: Case, row: Row) -> Trial:
        tried.append((case, state.status.case))
        raise CaseFailedError("rank 1: MemoryError")

    groups = Groups()
    again = rehearsal(groups, state, standing, {})
    again.of(waiting.setting, raises)
    again.of(waiting.setting, raises)
    assert tried == [(finished, f"rehearse {finished.case_id}")], "one attempt, and none for a failed case"
    assert groups.rebuilt == 1, "a failure rebuilds the process group of the measured collectives"
    assert groups.checked == 1, "a failure may have broken the default process group"
    assert state.status.case == "the case that waits"
    (finding,) = again.findings(waiting)
    assert (finding.case_id, finding.kind) == (waiting.case_id, "not_compared")
    assert finding.statement.startswith(f"{finished.case_id} could not be run again")
    assert finding.statement.endswith(": rank 1: MemoryError")
    assert list(again.findings(elsewhere)) == []


def test_rank_0_saves_in_a_phase_of_its_own_and_changes_are_nobodys(state: RankState) -> None:
    (case,) = expand_cases(compose_config([*OVERRIDES, "reduction=[sum]", "sharding=[even]"], nproc_per_node=2))
    phases, groups = list[str](), Groups()
    waiting: dict[str, list[int]] = {}
    groups.control.changed = waiting

    def measure(enter: Callable[[str], None]) -> SimpleNamespace:
        enter("aggregate")
        torch.set_grad_enabled(False)
        return SimpleNamespace(gradient=[("weight", torch.ones(1))])

    comparisons = SimpleNamespace(keep=lambda case, gradient: phases.append(state.phase))
    drifts = SimpleNamespace(of=lambda case, trial: None)
    again = Rehearsal(
        cast(World, groups), state, cast(Comparisons, comparisons), cast(Drifts, drifts), {case: Row(OK, 3, "")}, {}
    )
    again.of(case.setting, lambda case, row: cast(Trial, SimpleNamespace(measure=measure)))
    assert phases == ["rehearse"]
    assert waiting == {}
    assert groups.control.changed == {"grad mode from True to False": [0]}


def test_a_quarantined_case_is_not_replayed(state: RankState) -> None:
    cases = expand_cases(compose_config(OVERRIDES, nproc_per_node=2))
    finished, waiting = cases[:2]
    name = f"rehearse {finished.case_id}"
    again = rehearsal(Groups(), state, {finished: Row(OK, 3, "ab")}, {name: "the world died in it twice: rank 1"})
    again.of(finished.setting, cast(Callable[[Case, Row], Trial], None))
    (finding,) = again.findings(waiting)
    assert finding.statement.endswith(": the world died in it twice: rank 1")
