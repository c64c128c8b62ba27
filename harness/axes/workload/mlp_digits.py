"""A multilayer perceptron on digits: samples do not influence each other."""

from functools import partial

from torch import nn

from harness.axes.workload.base import Workload
from harness.axes.workload.digits import load_digits
from harness.schema.parameters import Count, Width


class MlpDigitsWorkload(Workload):
    """Two hidden layers of `hidden` units on 8x8 digits; cross entropy over ten classes."""

    def __init__(self, hidden: Width = 64, samples: Count | None = None) -> None:
        super().__init__(model=partial(_build, hidden), loss=nn.CrossEntropyLoss, data=load_digits, samples=samples)


def _build(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
