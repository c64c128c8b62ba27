"""Probe: questions put to the machine rather than to a case, and what they are put with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.schema.config import DriftConfig
from harness.schema.record import Observation

NO_CUDA = "this run is on the CPU: there is no CUDA stream to race with"
ONE_RANK = "one rank: there is nobody to sum with"


@dataclass(frozen=True)
class Subject:
    """A workload's model and its global batch, whole on every rank."""

    name: str
    model: Callable[[torch.dtype], nn.Module]
    """A copy of the initial model."""
    initialized: Callable[[int, torch.dtype], nn.Module]
    """The model with the parameters that another seed gives."""
    loss: Callable[[nn.Module, Tensor | None], Tensor]
    """(model, order) to the mean loss; `order` permutes the batch, or picks from it."""
    samples: int
    """In the batch."""

    def gradient(self, model: nn.Module, order: Tensor | None = None) -> list[tuple[str, Tensor]]:
        """(parameter, gradient) of the mean loss."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(
            self.loss(model, order), list(named.values()), allow_unused=True, materialize_grads=True
        )
        return list(zip(named, gradients, strict=True))


@dataclass(frozen=True)
class Machine:
    """One rank among the others, and what it may work with."""

    rank: int
    size: int
    device: torch.device
    backend: str
    group: ProcessGroup
    """The measured process group."""
    meet: Callable[[], None]
    """Wait for all ranks, beside `group`."""
    seed: int
    subjects: tuple[Subject, ...]
    drift: DriftConfig


@dataclass(frozen=True)
class Question:
    """One thing to find out. All ranks ask alike, and answer with as many observations in equal order."""

    subject: str
    ask: Callable[[], Iterable[Observation]]
    unsupported: str | None = None
    """Why this machine cannot show it; equal on all ranks."""


class Probe(ABC):
    """A set of questions. A question that raises fails alone, on all ranks together."""

    @abstractmethod
    def questions(self, machine: Machine) -> list[Question]:
        """In the order in which they are asked. Nothing is computed yet."""
