"""Aggregation: how the ranks' local gradients become the global one."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.schema.context import Context, Option


class Issue:
    """Issues collectives one after the other, and waits for each as the sync policy says."""

    def __init__(self, *, asynchronous: bool = False, after_each: Callable[[], None] | None = None) -> None:
        self._asynchronous, self._after_each = asynchronous, after_each
        self._started: list[tuple[Any, Callable[[], None] | None]] = []

    def __call__(self, collective: Callable[..., Any], *, then: Callable[[], None] | None = None) -> None:
        """`collective` takes async_op, and returns its work; `then` needs its result."""
        if self._asynchronous:
            self._started.append((collective(async_op=True), then))
            return
        collective()
        if self._after_each:
            self._after_each()
        if then:
            then()

    def settle(self) -> None:
        """Wait for what is still in flight."""
        while self._started:
            work, then = self._started.pop(0)
            work.wait()
            if then:
                then()


@dataclass(frozen=True)
class Fabric:
    """The ranks that a case's gradients are aggregated over."""

    group: ProcessGroup
    """All of them; it is what is measured."""
    ranks_per_node: int
    subgroups: Callable[[int], tuple[ProcessGroup, ProcessGroup]]
    """Given a number of ranks, cuts the group into runs of so many: the run of this rank, and those that have its place in
    their runs. Made once; every rank must ask for the same. Raises ValueError where the world is no multiple of it."""
    issue: Issue = field(default_factory=Issue)
    """For the collectives of a strategy that follows the sync policy."""
    some_unused: bool = False
    """Whether some rank's batch leaves a parameter without a gradient."""


class Exchange:
    """A strategy at work on one case: `model` is what the passes go through; after them comes `finish`, in each iteration."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def accumulating(self) -> AbstractContextManager[Any]:
        """Around passes after which another one follows: what communicates in backward keeps quiet."""
        return nullcontext()

    def backward_ended(self) -> None:
        """After the last backward of a strategy that communicates in it: send what backward did not reach on this rank."""

    def finish(self, gradients: list[Tensor]) -> None:
        """Leave in `gradients` their sum over ranks; or their mean, where the strategy averages."""

    def sent(self, gradients: list[Tensor]) -> list[Tensor]:
        """What `total` sums of a rank's local gradients: new tensors, put together and scaled as they travel."""
        return [gradient.clone() for gradient in gradients]

    def received(self, gradients: list[Tensor]) -> list[Tensor]:
        """Aggregated gradients put together as `sent` does, and not scaled."""
        return gradients

    def total(self, tensors: list[Tensor]) -> None:
        """Sum over ranks what `sent` gives, as an iteration does. Where `Aggregation.sums`, this is all that it does."""
        self.finish(tensors)

    def rest(self) -> None:
        """After a forward that no backward follows: leave the model as it is between iterations."""

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter or its gradient in one piece; of a strategy that shards them, gathered. Every rank calls alike."""
        return tensor


class Aggregation(Option):
    """Sums gradients over ranks, or averages them. One that waits for backward to end has `finish` alone."""

    spans_ranks: ClassVar[bool] = True
    """False: a rank keeps what it has alone; it is its own world, and there is nothing to finish."""

    averages: ClassVar[bool] = False
    """True: what is left is the mean over ranks, not the sum."""

    lossy: ClassVar[bool] = False
    """True: it rounds or drops what it sends, by design."""
    sends: torch.dtype | None = None
    """The dtype of what it sends, where it or its parameters choose one."""
    sends_gradients: ClassVar[bool] = True
    """False: what it sends is not as many bytes as the gradient has."""

    sums: ClassVar[bool] = True
    """Whether what is left is what `Exchange.total` leaves of what `Exchange.sent` gives, bit for bit."""

    in_backward: ClassVar[bool] = False
    """True: gradients leave the rank during backward, so that nothing can be done to them between the two."""
    needs_own_forward: ClassVar[bool] = False
    """True: the last of several backward passes must have a forward of its own, outside `accumulating`."""
    accumulates: ClassVar[bool] = True
    """False: every iteration must be one forward and one backward."""
    needs_a_pass: ClassVar[bool] = False
    """True: a rank that has no samples must go through a forward and a backward, or the others would wait for it."""
    needs_same_use: ClassVar[bool] = False
    """True: every pass of a rank must give a gradient to the same parameters."""
    needs_equal_use: ClassVar[bool] = False
    """True: every rank's batch must give a gradient to the same parameters."""
    follows_sync: ClassVar[bool] = False
    """True: it hands its collectives to `Fabric.issue`, and leaves it to the sync policy when to wait for them."""
    host_waits: ClassVar[bool] = False
    """True: it makes the host wait for its CUDA device, so that it cannot launch a whole step ahead of the device."""
    warm_up: ClassVar[int] = 0
    """Iterations that it needs before it does what it is named for."""

    def unsupported(self, context: Context) -> str | None:
        if not self.accumulates and max(context.passes) > 1:
            return f"this aggregation takes one backward an iteration, and here a rank makes {max(context.passes)}"
        if self.needs_same_use and context.varying_use:
            return "this aggregation is promised that every pass uses the same parameters, and here passes differ in that"
        if self.needs_equal_use and context.unequal_use:
            return "this aggregation needs gradients of the same parameters on every rank; the ranks' batches differ in that"
        return None

    def begin(self, model: nn.Module, fabric: Fabric) -> Exchange:
        """Make a case ready. Every rank calls alike."""
        return _AfterBackward(model, lambda gradients: self.finish(gradients, fabric.group))

    def finish(self, gradients: list[Tensor], group: ProcessGroup) -> None:
        """Leave in `gradients` their sum over ranks; or their mean, where it averages."""

    def needs_bytes(self, gradients: list[Tensor], world_size: int) -> int:
        """Device memory that it takes beside the gradients themselves, at its peak."""
        return 0


class FollowingSync(Aggregation, ABC):
    """One blocking collective after the other, unless the sync policy says otherwise. It has `issue_all`, and no `finish`."""

    follows_sync = True

    def begin(self, model: nn.Module, fabric: Fabric) -> Exchange:
        return _AfterBackward(model, lambda gradients: self._finish(gradients, fabric))

    def _finish(self, gradients: list[Tensor], fabric: Fabric) -> None:
        self.issue_all(gradients, fabric)
        fabric.issue.settle()

    @abstractmethod
    def issue_all(self, gradients: list[Tensor], fabric: Fabric) -> None:
        """Hand every collective of the sum to `fabric.issue`."""


class _AfterBackward(Exchange):
    """Nothing is sent before all local gradients are there."""

    def __init__(self, model: nn.Module, finish: Callable[[list[Tensor]], None]) -> None:
        super().__init__(model)
        self._finish = finish

    def finish(self, gradients: list[Tensor]) -> None:
        self._finish(gradients)
