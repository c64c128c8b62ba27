"""Batchnorm: over which samples BatchNorm takes its statistics."""

from typing import ClassVar

from torch import nn
from torch.distributed import ProcessGroup

from harness.schema.context import Option


class Batchnorm(Option):
    """What becomes of a case's BatchNorm modules, where it has any."""

    synced: ClassVar[bool] = False
    """Whether all ranks' samples are normalized together, as on one rank."""

    def prepare(self, model: nn.Module, group: ProcessGroup) -> nn.Module:
        """The case's own model, with its BatchNorm modules replaced."""
        return model
