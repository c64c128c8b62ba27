"""All-reduces that begin while backward goes on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric
from harness.tensors import collectives
from harness.tensors.collectives import Pending


class OverlapAggregation(Aggregation):
    """A hook at each parameter starts its all-reduce as soon as its gradient is there; at the end all are waited for."""

    in_backward = True

    def begin(self, model: nn.Module, fabric: Fabric) -> "OverlapExchange":
        return OverlapExchange(model, fabric.group)


class OverlapExchange(Exchange):
    """All-reduces start in one order on all ranks, the parameters' reversed, whatever order backward finishes them in."""

    def __init__(self, model: nn.Module, group: ProcessGroup) -> None:
        super().__init__(model)
        self._group = group
        self._order = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
        self._ready: set[nn.Parameter] = set()
        self._started: list[tuple[nn.Parameter, Tensor, Pending]] = []
        """(parameter, the gradient that was sent, its all-reduce)."""
        self._quiet = False
        for parameter in self._order:
            parameter.register_post_accumulate_grad_hook(self._arrived)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def backward_ended(self) -> None:
        self._start(len(self._order))

    def finish(self, gradients: list[Tensor]) -> None:
        for parameter, sent, work in self._started:
            work.wait()
            if parameter.grad is not sent and parameter.grad is not None:
                parameter.grad.copy_(sent)  # a hook of the model's own, which ran later, has put another tensor there
        self._ready.clear()
        self._started.clear()

    def total(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            collectives.all_reduce(tensor, group=self._group)

    def _arrived(self, parameter: nn.Parameter) -> None:
        if self._quiet:
            return
        self._ready.add(parameter)
        upto = len(self._started)
        while upto < len(self._order) and self._order[upto] in self._ready:
            upto += 1
        self._start(upto)

    def _start(self, upto: int) -> None:
        for parameter in self._order[len(self._started) : upto]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            work = collectives.all_reduce(parameter.grad, group=self._group, async_op=True)
            self._started.append((parameter, parameter.grad, work))
