"""Reduction: how one rank turns its batch into its local gradient (the reduction of the loss)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from harness.schema.context import Option

Phases = list[tuple[str, Callable[[], None]]]
"""Names and what runs under them, in order. Between the two clock reads of a phase stands one call."""


class Samples(Protocol):
    """A batch: `inputs` and `target` with the samples along the first dimension, and slices of it."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def target(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> "Samples": ...


class Losses(Protocol):
    """A loss under its three reductions, each (output, target) -> Tensor."""

    @property
    def none(self) -> Callable[[Tensor, Tensor], Tensor]: ...
    @property
    def sum(self) -> Callable[[Tensor, Tensor], Tensor]: ...
    @property
    def mean(self) -> Callable[[Tensor, Tensor], Tensor]: ...


@dataclass(frozen=True)
class LocalWork:
    """What one rank turns into its local gradient, left in `.grad` of the parameters."""

    model: nn.Module
    criterion: Losses
    batch: Samples
    terms: tuple[float, ...]
    """What each sample counts: 1, or its tokens that count."""
    denominator: float
    """What the rank's sum of losses is divided by: its own terms, or those of the whole batch (normalization)."""
    accumulating: Callable[[], AbstractContextManager[Any]]
    """Context of the passes after which another one follows: an aggregation that communicates in backward keeps quiet."""
    in_backward: bool = False
    """Whether gradients leave the rank during backward: they are then divided beforehand, by way of the loss."""
    needs_own_forward: bool = False
    """Whether the last of several backward passes needs a forward of its own."""
    around_pass: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext()
    """Context of every one of several passes, told whether it is the last: a planted fault interferes here."""
    note: Callable[[Tensor, float], None] = lambda losses, denominator: None
    """Takes every loss whose gradient a reduction adds, of any shape, and what is still to be divided by: `cases` shows the
    rank's sum of losses / denominator. After a warm-up it keeps nothing in a timed iteration."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that get a gradient."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def count(self) -> float:
        """What the rank's batch counts."""
        return sum(self.terms)

    def parts(self, size: int) -> list[slice]:
        """The batch in parts of `size` samples; the last one may be smaller."""
        return [slice(part.start, part.stop) for part in parts(len(self.batch), size)]

    @contextmanager
    def each_pass(self, *, last: bool) -> Iterator[None]:
        """Around one forward and backward of several."""
        with nullcontext() if last else self.accumulating(), self.around_pass(last):
            yield

    def divided(self, loss: Tensor) -> Tensor:
        """The summed loss, divided here where its gradient cannot be divided after backward."""
        return loss / self.denominator if self.in_backward else loss

    def divide_gradients(self) -> None:
        """Divide what the backward passes have summed, unless `divided` has."""
        if self.in_backward:
            return
        torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], self.denominator)


def parts(samples: int, size: int) -> list[range]:
    """So many samples in runs of `size`; the last one may be smaller."""
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


class Reduction(Option, ABC):
    """One way of reducing the loss: its phases leave (sum of the losses' gradients) / denominator in every `.grad`.

    They hand the losses to `work.note`; of a reduction that does not, `cases` has no loss.
    """

    keeps_graph: ClassVar[bool] = False
    """Whether several backward passes share one forward."""
    separates_samples: ClassVar[bool] = False
    """Whether it takes samples one by one by torch.func, and not by backward."""
    tolerated_warnings: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of warnings that the mode takes a slow path of torch; recorded as a finding instead of printed."""

    def splits(self, samples: int) -> bool:
        """Whether the model sees parts of a batch of so many samples by themselves: another function where they are coupled."""
        return False

    def passes(self, terms: Sequence[float]) -> list[range]:
        """The samples of each backward, one after the other; `terms` is what each sample counts."""
        return [range(len(terms))]

    def needs_bytes(self, gradients: list[Tensor], samples: int) -> int:
        """Device memory that it takes beside one forward and one backward over the rank's samples."""
        return 0

    def leftover(self, denominator: float) -> float:
        """What the phases leave of a gradient that is in `.grad` before them: all of it, where they only add to it."""
        return 1.0

    @abstractmethod
    def phases(self, work: LocalWork) -> Phases:
        """What is timed, by name: forward and backward, or local_gradient where they interleave."""


class SharedForward(Reduction):
    """Modes with one forward over the whole batch."""

    def phases(self, work: LocalWork) -> Phases:
        losses: list[Tensor] = []
        return [
            ("forward", lambda: losses.append(self.forward(work))),
            ("backward", lambda: self.backward(work, losses.pop())),
        ]

    @abstractmethod
    def forward(self, work: LocalWork) -> Tensor:
        """What backward starts from."""

    @abstractmethod
    def backward(self, work: LocalWork, result: Tensor) -> None:
        """Leave the gradient in `.grad`; `result` is forward's."""


class Interleaved(Reduction):
    """Modes in which forward and backward alternate, or are one."""

    def phases(self, work: LocalWork) -> Phases:
        return [("local_gradient", lambda: self.local_gradient(work))]

    @abstractmethod
    def local_gradient(self, work: LocalWork) -> None:
        """Leave the gradient in `.grad`."""


class EachSample(Reduction):
    """Modes with one backward a sample, whose sum in `.grad` is divided in place."""

    def needs_bytes(self, gradients: list[Tensor], samples: int) -> int:
        """Each backward's gradient, parameter by parameter, until it is added to the others'."""
        return max(gradient.nbytes for gradient in gradients)

    def passes(self, terms: Sequence[float]) -> list[range]:
        return parts(len(terms), 1)

    def leftover(self, denominator: float) -> float:
        return 1 / denominator


class SharedGraph(EachSample, SharedForward):
    """Modes with one forward over the whole batch, and one backward a sample over its kept graph."""

    keeps_graph = True

    def phases(self, work: LocalWork) -> Phases:
        kept: list[Tensor] = []
        return [
            ("forward", lambda: kept.append(self._first_forward(work))),
            ("backward", lambda: self.backward(work, kept.pop())),
        ]

    def backward(self, work: LocalWork, result: Tensor) -> None:
        rows = work.parts(1)
        for row in rows:
            last = row is rows[-1]
            with work.each_pass(last=last):
                own = self.forward(work) if last and self._two_forwards(work) else result
                loss = self.loss_of(work, own, row)
                work.note(loss, work.denominator)
                work.divided(loss).backward(retain_graph=not last)
        work.divide_gradients()

    @abstractmethod
    def loss_of(self, work: LocalWork, result: Tensor, row: slice) -> Tensor:
        """The loss of one sample, from what forward gave."""

    def _first_forward(self, work: LocalWork) -> Tensor:
        with work.accumulating() if self._two_forwards(work) else nullcontext():
            return self.forward(work)

    def _two_forwards(self, work: LocalWork) -> bool:
        return work.needs_own_forward and len(work.batch) > 1
