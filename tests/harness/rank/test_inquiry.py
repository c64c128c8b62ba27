"""Tests of the questions of a probe, in order."""

from types import SimpleNamespace
from typing import cast

import torch

from harness.probes.base import Machine, Probe, Question
from harness.probes.control import Control
from harness.rank.inquiry import Inquiry
from harness.rank.process_group import World
from harness.schema.record import FAILED, OK


class Asks(Probe):
    """One question that changes a setting and fails, and one that finds nothing."""

    def questions(self, machine: Machine) -> list[Question]:
        """Both."""
        return [Question("first", self.fail), Question("second", list)]

    def fail(self) -> list[None]:  # type: ignore[override]
        """Change a setting first."""
        torch.set_grad_enabled(False)
        raise ValueError


def test_after_a_question_that_fails_the_default_group_is_checked_and_no_case_is_blamed() -> None:
    of_the_case: dict[str, list[int]] = {}
    control, calls = Control(None, 0, 1), list[str]()
    control.changed = of_the_case
    groups = {name: lambda name=name: calls.append(name) for name in ("rebuild_measured", "check_default")}
    inquiry = Inquiry("asks", Asks())
    inquiry.run(cast(World, SimpleNamespace(control=control, **groups)), cast(Machine, None))
    assert [row.status for row in inquiry.asked] == [FAILED, OK]
    assert calls == ["check_default", "rebuild_measured", "check_default"]
    assert of_the_case == {}
