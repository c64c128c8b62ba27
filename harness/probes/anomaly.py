"""Anomaly detection: what it finds, what it does not, and what it costs."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from harness.probes import rounds
from harness.probes.base import Machine, Probe, Question, Subject
from harness.schema.record import Observation

ROUNDS = 20


class AnomalyProbe(Probe):
    """Planted mistakes, with torch.autograd.detect_anomaly and without; and the time of each workload's gradient under it."""

    def questions(self, machine: Machine) -> list[Question]:
        planted = [
            Question("a planted NaN", partial(_plant, machine, lambda x: torch.sqrt(x - 2).sum())),
            Question("a planted gradient of 1e30", partial(_plant, machine, lambda x: (x * 1e30).sum())),
        ]
        return [*planted, *(Question(subject.name, partial(_cost, machine, subject)) for subject in machine.subjects)]


def _plant(machine: Machine, loss: Callable[[Tensor], Tensor]) -> Iterator[Observation]:
    for setting, enabled in (("without", False), ("with detect_anomaly", True)):
        text = _raises(loss, torch.ones(4, device=machine.device, requires_grad=True), enabled)
        yield Observation(setting, "raises", float(bool(text)), text)


def _raises(loss: Callable[[Tensor], Tensor], x: Tensor, enabled: bool) -> str:
    """The error's first line; empty when there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it is on, and shows the forward call of what it found
            with torch.autograd.set_detect_anomaly(enabled):
                loss(x).backward()
    except RuntimeError as error:
        if "nan values" not in str(error):  # what anomaly detection says of what it finds
            raise
        return str(error).splitlines()[0]
    return ""


def _cost(machine: Machine, subject: Subject) -> Iterator[Observation]:
    model = subject.model(torch.float32)

    def watched() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.autograd.set_detect_anomaly(True):
                subject.gradient(model)

    yield from rounds.seconds(
        {"without": partial(subject.gradient, model), "with detect_anomaly": watched}, ROUNDS, machine.device
    )
