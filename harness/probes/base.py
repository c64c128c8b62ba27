"""Probe: questions put to the machine rather than to a case, and what they are put with."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.schema.config import DriftConfig
from harness.schema.record import Observation, Timing

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
    forward: Callable[[nn.Module, Tensor | None, str], Tensor]
    """(model, order, reduction) to the loss; `order` permutes the batch, or picks from it."""
    samples: int
    """In the batch."""
    seed: int | None
    """What the model draws (dropout) comes from it, in every forward alike; None: from what was drawn before."""

    def loss(self, model: nn.Module, order: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Of the batch, or of what `order` picks from it."""
        if self.seed is not None:
            torch.manual_seed(self.seed)
        return self.forward(model, order, reduction)

    def gradient(self, model: nn.Module, order: Tensor | None = None, reduction: str = "mean") -> list[tuple[str, Tensor]]:
        """(parameter, gradient) of the loss."""
        named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(
            self.loss(model, order, reduction), list(named.values()), allow_unused=True, materialize_grads=True
        )
        return list(zip(named, gradients, strict=True))


@dataclass(frozen=True)
class Way:
    """One way of timing several calls in a row."""

    clock: str
    time: Callable[[], float] | None
    """Return seconds of one call, the mean over all; NaN, on all ranks, where it was not measured. None: impossible here."""
    reason: str = ""
    """Reason why there is no number, where there is none."""


@dataclass(frozen=True)
class Machine:
    """One rank among the others, and what it may work with."""

    rank: int
    size: int
    device: torch.device
    backend: str
    measured: Callable[[], ProcessGroup]
    """The measured process group of now: a failure replaces it."""
    meet: Callable[[], None]
    """Wait for all ranks, beside `group`."""
    time: Callable[[Callable[[], None]], dict[str, float]]
    """Call once; clock to seconds. On CUDA the host's are those of the launch."""
    in_a_row: Callable[[Callable[[], None], int], Generator[Way, None, None]]
    """Ways of timing so many calls in a row, without a barrier between them; each way is used up before the next one.

    Close it when a way raises: a CUDA graph must end before its process group does.
    """
    free_bytes: Callable[[], int]
    """Memory that each rank could still take on its device; a collective, equal on all ranks."""
    seed: int
    subjects: tuple[Subject, ...]
    drift: DriftConfig

    @property
    def group(self) -> ProcessGroup:
        """The measured process group."""
        return self.measured()


@dataclass(frozen=True)
class Question:
    """One thing to find out. All ranks ask alike, and answer with as many observations in equal order."""

    subject: str
    ask: Callable[[], Iterable[Observation | Timing]]
    unsupported: str | None = None
    """Why this machine cannot show it; equal on all ranks."""


class CannotError(Exception):
    """What a machine turns out not to have, on all ranks alike: the question is skipped with this reason."""


class Probe(ABC):
    """A set of questions. A question that raises fails alone, on all ranks together."""

    independent = False
    """True where every question has a subject of its own and needs nothing of the ones before it: answers of a run that ends
    early are kept, and the run goes on after them."""

    @abstractmethod
    def questions(self, machine: Machine) -> list[Question]:
        """In the order in which they are asked. Nothing is computed yet."""
