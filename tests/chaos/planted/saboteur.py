"""A model, an aggregation, and a probe that harm their own rank once, when a plan says so. Else they are as any other."""

import json
import os
import resource
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.axes.aggregation.base import Fabric, FollowingSync
from harness.axes.workload.base import Workload
from harness.axes.workload.digits import load_digits
from harness.probes.base import Machine, Question
from harness.probes.float_sums import FloatSumsProbe

PLAN = Path(os.environ["REDUCEBENCH_CHAOS"])
_PHASE = 32
_SPARE_BYTES = 2**27
_LONGEST_S = 30.0


def act() -> None:
    """Do the plan's deed, if it is this rank's, in this phase of the asked case; a plan is carried out once."""
    try:
        plan = json.loads(PLAN.read_text())
    except FileNotFoundError:  # there is none; or another rank is carrying it out just now
        return
    if int(os.environ["RANK"]) != plan["rank"] or not _is_there(plan):
        return
    PLAN.with_suffix(".case").write_text(_state(plan)[1]["case"])
    PLAN.unlink()
    _DEEDS[plan["deed"]]()


def _is_there(plan: dict[str, Any]) -> bool:
    phase, state = _state(plan)
    return phase == plan["phase"] and state["done"] >= plan["done"] and plan["case"] in ("", state["case"])


def _state(plan: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The phase, and the rest, of this rank's own record."""
    raw = Path(plan["states"], f"{plan['rank']}.state").read_bytes()
    return raw[:_PHASE].decode().strip(" \0"), json.loads(raw[_PHASE:])


def _raise() -> None:
    raise RuntimeError("planted by the saboteur")


def _exhaust() -> None:
    """Under a limit of little more than is taken now, ask for far more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _SPARE_BYTES, before[1]))
    try:
        torch.ones(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _hold() -> None:
    """Stay in this phase until the test lets go of this rank, or what it did has ended it."""
    until = time.monotonic() + _LONGEST_S
    while not PLAN.with_suffix(".struck").exists() and time.monotonic() < until:
        time.sleep(0.01)


_DEEDS = {
    "hold": _hold,
    "raise": _raise,
    "exit": partial(os._exit, 0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "memory": _exhaust,
}


class _Passing(torch.autograd.Function):
    """The identity, with a look at the plan in backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        act()
        return gradient


class Saboteur(nn.Module):
    """The identity, with a look at the plan."""

    def forward(self, inputs: Tensor) -> Tensor:
        act()
        passed: Tensor = _Passing.apply(inputs)
        return passed


class SabotagedWorkload(Workload):
    """Digits through a small perceptron with a saboteur in it."""

    def __init__(self) -> None:
        super().__init__(model=_build, loss=nn.CrossEntropyLoss, data=load_digits)


def _build() -> nn.Module:
    act()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), Saboteur(), nn.ReLU(), nn.Linear(32, 10))


class SabotagedProbe(FloatSumsProbe):
    """Sums of floats, with a look at the plan before the second question is answered."""

    def questions(self, machine: Machine) -> list[Question]:
        first, second = super().questions(machine)
        return [first, replace(second, ask=lambda: (act(), second.ask())[1])]


class SabotagedAggregation(FollowingSync):
    """One all-reduce a parameter, with a look at the plan before the second."""

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        for place, gradient in enumerate(gradients):
            if place == 1:
                act()
            fabric.issue(partial(dist.all_reduce, gradient, group=fabric.group))
