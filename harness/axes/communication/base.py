"""Communication: the dtype in which gradients travel."""

from typing import ClassVar

import torch

from harness.schema.context import Context, Option


class Communication(Option):
    """Gradients are cast before the aggregation and cast back after it."""

    dtype: ClassVar[torch.dtype | None] = None
    """None: as they are."""

    def unsupported(self, context: Context) -> str | None:
        if self.dtype is None:
            return None
        if not context.spans_ranks:
            return "this aggregation sends nothing"
        if context.in_backward:
            return "this aggregation sends during backward: a dtype for that is a matter of its own parameters and variants"
        return None
