"""torch.compile."""

import shutil
from contextlib import ExitStack

from torch import nn

from harness.axes.execution.base import Execution
from harness.schema.context import Context


class CompileExecution(Execution):
    """torch.compile of the model, by its default backend, in the warm-up. The loss and the gradient's sum are not compiled."""

    def unsupported(self, context: Context) -> str | None:
        if context.separates_samples:
            return "torch.func's vmap cannot call a compiled module"
        if context.device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "torch.compile needs a C++ compiler on the CPU, and this host has none"
        return None

    def prepare(self, model: nn.Module) -> None:
        model.compile()

    def computing(self) -> ExitStack:
        """A reduction may go through one graph several times, for which backward must not reuse its saved tensors' memory; and
        random numbers are eager's, or dropout would be another function."""
        from torch._functorch import config as functorch  # slow to import
        from torch._inductor import config as inductor

        flags = ExitStack()
        flags.enter_context(functorch.patch(donated_buffer=False))
        flags.enter_context(inductor.patch(fallback_random=True))
        return flags
