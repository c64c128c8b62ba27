"""Waits of known length, planted."""

import os
import time

from torch import Tensor

from harness.axes.aggregation.base import Fabric
from harness.axes.aggregation.flat import FlatAggregation
from harness.axes.reduction.base import LocalWork
from harness.axes.reduction.mean import MeanReduction


class PlantedAggregation(FlatAggregation):
    """`flat`, after so many milliseconds as PLANTED_MS says: no parameter of the case, so that both sides have the same one."""

    def __init__(self) -> None:
        self._seconds = float(os.environ["PLANTED_MS"]) / 1e3

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        time.sleep(self._seconds)
        super().issue_all(gradients, fabric)


class PlantedReduction(MeanReduction):
    """`mean`, with a wait before its backward."""

    def __init__(self, milliseconds: float) -> None:
        self._seconds = milliseconds / 1e3

    def backward(self, work: LocalWork, result: Tensor) -> None:
        time.sleep(self._seconds)
        super().backward(work, result)
