"""A workload that changes every setting of the process, and one whose gradient depends on each that it can."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEATURES, SAMPLES = 5, 16
_ENTERED: list[Any] = []
"""Contexts that nobody leaves."""


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, FEATURES), torch.randn(SAMPLES, 1)


def leaking_data() -> tuple[Tensor, Tensor]:
    """Make the data, and leave what no step can be made under."""
    found = data()
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    _ENTERED.append(torch.inference_mode())
    _ENTERED[-1].__enter__()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return found


class Leaking(nn.Linear):
    """Leaves in every forward what its own step can be made under."""

    def __init__(self) -> None:
        super().__init__(FEATURES, 1)
        torch.set_grad_enabled(False)

    def forward(self, inputs: Tensor) -> Tensor:
        found = super().forward(inputs)
        torch.set_num_threads(torch.get_num_threads() % 2 + 1)
        torch.autograd.set_detect_anomaly(True, check_nan=False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("medium")
        torch.set_autocast_enabled("cpu", True)
        torch.backends.mkldnn.enabled = False
        torch.backends.cudnn.benchmark = True
        torch.set_flush_denormal(True)
        random.seed(2)
        np.random.seed(2)
        return found


class Drawing(nn.Linear):
    """Draws from every generator, and reads what it can of the settings."""

    def __init__(self) -> None:
        super().__init__(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        drawn = torch.rand(()) + float(np.random.random()) + random.random()
        read = 2.0 * torch.are_deterministic_algorithms_enabled() + 4.0 * torch.is_autocast_enabled("cpu")
        read += 8.0 * torch.is_anomaly_enabled() + 16.0 * torch.get_num_threads() + (torch.tensor(1 / 3) - 1 / 3).item()
        return super().forward(inputs) * (drawn + read)


class InEval(nn.Module):
    """A model of which one part was put into eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4)).eval()
        self.last = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        assert not any(part.training for part in self.frozen.modules())
        assert self.training
        last: Tensor = self.last(self.frozen(inputs))
        return last
