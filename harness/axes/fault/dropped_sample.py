"""A loss term that is lost."""

import torch
from torch import Tensor, nn

from harness.axes.fault.base import OneSampleFault, Share, Situation


class DroppedSampleFault(OneSampleFault):
    """A sample of `rank` enters the model and is counted, but nothing flows back from its output."""

    def expected(self, situation: Situation) -> list[Share]:
        right = situation.right
        weights = list(right[self._rank].weights)
        weights[self._sample] = 0.0
        return self.changed(right, Share(tuple(weights)))

    def inputs(self, rank: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lost = torch.zeros(len(inputs[0]), dtype=torch.bool, device=inputs[0].device)
        if rank == self._rank:
            lost[self._sample] = True
        return (*inputs, lost)

    def model(self, model: nn.Module) -> nn.Module:
        return _Cut(model)


class _Cut(nn.Module):
    """Detaches the outputs of the samples that its last input marks, whatever part of the batch it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        *inputs_of_model, lost = inputs
        output: Tensor = self.inner(*inputs_of_model)
        lost = lost.reshape(-1, *[1] * (output.dim() - 1))
        return torch.where(lost, output.detach(), output)
