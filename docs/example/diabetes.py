"""The data of the example workload: scikit-learn's bundled diabetes study, 442 patients."""

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor


def load() -> tuple[Tensor, Tensor]:
    """Ten measurements [442, 10], scaled to unit variance, and the disease's progression a year later [442, 1]."""
    data = load_diabetes()
    inputs = torch.from_numpy(data.data).float()
    target = torch.from_numpy(data.target).float().unsqueeze(1)
    return inputs / inputs.std(0), (target - target.mean()) / target.std()
