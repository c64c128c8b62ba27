"""Data and models that are not the usual ones: what is served, what is skipped, and what is refused."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES, SAMPLES, WORDS = 4, 24, 9


def _inputs() -> Tensor:
    return torch.randn(SAMPLES, FEATURES)


def _frame() -> Tensor:
    """Make the column of a data frame: df[["y"]].to_numpy()."""
    table = np.arange(3.0 * SAMPLES, dtype=np.float32).reshape(3, SAMPLES).T
    return torch.from_numpy(table[:, [1]].T.copy().T)


TARGETS = {
    "column of a frame": _frame,
    "column of a table": lambda: torch.randn(SAMPLES, 3)[:, 1:2],
    "transposed row": lambda: torch.randn(1, SAMPLES).t(),
    "expanded": lambda: torch.ones(1, 1).expand(SAMPLES, 1),
    "float64": lambda: torch.randn(SAMPLES, 1, dtype=torch.float64),
    "int32": lambda: torch.randint(2, (SAMPLES, 1), dtype=torch.int32),
}
REFUSED = {
    "a ndarray": lambda: np.zeros((SAMPLES, 1)),
    "a dict": lambda: {"y": torch.zeros(SAMPLES, 1)},
    "a nested tensor": lambda: torch.nested.nested_tensor([torch.zeros(1)] * SAMPLES, layout=torch.jagged),
    "a tensor of layout sparse_coo": lambda: torch.zeros(SAMPLES, 1).to_sparse(),
    "a tensor without dimensions": lambda: torch.tensor(1.0),
}


def plain() -> tuple[Tensor, Tensor]:
    return _inputs(), torch.randn(1, SAMPLES).t()


def words() -> tuple[Tensor, Tensor]:
    return torch.randint(WORDS, (SAMPLES, 3)), torch.randn(SAMPLES, 1)


def linear() -> nn.Module:
    return nn.Linear(FEATURES, 1)


def lazy() -> nn.Module:
    """Make a lazy model, of which one part is in eval mode."""
    model = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(1))
    model[1].eval()
    return model


class Sparse(nn.Module):
    """Says in a module that its gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.last = nn.Embedding(WORDS, FEATURES, sparse=True), nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.last(self.embedding(inputs).mean(1))
        return last


class SparseInside(nn.Module):
    """Has a sparse gradient that nothing but the gradient shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(WORDS, FEATURES)), nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        last: Tensor = self.last(functional.embedding(inputs, self.weight, sparse=True).mean(1))
        return last


class Complex(nn.Module):
    """Has a complex parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 1, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(self.weight.dtype) @ self.weight).abs()


class Putting(nn.Module):
    """Calls an operator that has no deterministic algorithm on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(FEATURES, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        torch.zeros(2, device=inputs.device).put_(
            torch.zeros(1, dtype=torch.long, device=inputs.device), inputs.new_ones(1).float()
        )
        last: Tensor = self.last(inputs)
        return last
