"""A convolutional network with BatchNorm on digits: samples of a batch influence each other."""

from functools import partial

from torch import nn

from harness.axes.workload.base import Workload
from harness.axes.workload.digits import load_digits
from harness.schema.parameters import Count, Width


class CnnDigitsWorkload(Workload):
    """Two convolutions of `channels` and twice as many channels, each with BatchNorm in train mode; cross entropy."""

    def __init__(self, channels: Width = 8, samples: Count | None = None) -> None:
        super().__init__(model=partial(_build, channels), loss=nn.CrossEntropyLoss, data=load_digits, samples=samples)


def _build(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    )
