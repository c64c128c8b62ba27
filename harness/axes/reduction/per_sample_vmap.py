"""All per-sample gradients at once, by torch.func."""

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from harness.axes.reduction.base import Interleaved, LocalWork
from harness.schema.context import Context


class PerSampleVmapReduction(Interleaved):
    """vmap over grad: a gradient [samples, ...] a parameter, summed and divided. Holds one gradient a sample in memory."""

    separates_samples = True
    tolerated_warnings = (r"There is a performance drop because we have not yet implemented the batching rule",)

    def splits(self, samples: int) -> bool:
        return samples > 1

    def leftover(self, denominator: float) -> float:
        return 0.0

    def unsupported(self, context: Context) -> str | None:
        if context.in_backward:
            return "torch.func computes gradients without the backward in which this aggregation communicates"
        if "BatchNorm" in context.coupling:
            return "vmap takes samples one by one, and BatchNorm in train mode needs the batch and updates its buffers in place"
        if "dropout" in context.coupling:
            return "vmap draws no random numbers unless it is told how samples share them: dropout's masks"
        return None

    def local_gradient(self, work: LocalWork) -> None:
        named = {name: p for name, p in work.model.named_parameters() if p.requires_grad}
        detached = {name: p.detach() for name, p in named.items()}

        def loss(parameters: dict[str, Tensor], inputs: tuple[Tensor, ...], target: Tensor) -> Tensor:
            output = functional_call(work.model, parameters, tuple(x.unsqueeze(0) for x in inputs))
            return work.criterion.sum(output, target.unsqueeze(0))

        both = vmap(grad_and_value(loss), in_dims=(None, 0, 0))
        per_sample, losses = both(detached, work.batch.inputs, work.batch.target)
        work.note(losses, work.denominator)
        for name, parameter in named.items():
            parameter.grad = torch.sum(per_sample[name], 0) / work.denominator

    def needs_bytes(self, gradients: list[Tensor], samples: int) -> int:
        """A gradient a sample."""
        return samples * sum(gradient.nbytes for gradient in gradients)
