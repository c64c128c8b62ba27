"""A slow-down of known size, planted."""

import os
import time

from torch import Tensor

from harness.axes.aggregation.base import Fabric
from harness.axes.aggregation.flat import FlatAggregation


class PlantedAggregation(FlatAggregation):
    """`flat`, after so many milliseconds as PLANTED_MS says: no parameter of the case, so that both sides have the same one."""

    def __init__(self) -> None:
        self._seconds = float(os.environ["PLANTED_MS"]) / 1e3

    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        time.sleep(self._seconds)
        super().issue_all(gradients, fabric)
