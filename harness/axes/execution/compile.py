"""torch.compile."""

import os
import shutil
import sys
from contextlib import ExitStack

from torch import nn

from harness.axes.execution.base import Execution
from harness.schema.context import Context


class CompileExecution(Execution):
    """torch.compile of the model, by its default backend, in the warm-up. The loss and the gradient's sum are not compiled."""

    def unsupported(self, context: Context) -> str | None:
        if context.separates_samples:
            return "torch.func's vmap cannot call a compiled module"
        variable, names, language = _compilers(context.device)
        if not any(map(shutil.which, [os.environ[variable]] if os.environ.get(variable) else names)):
            return f"torch.compile needs a {language} compiler ({' or '.join(names)}, or {variable}), and this host has none"
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


def _compilers(device: str) -> tuple[str, tuple[str, ...], str]:
    """Return the environment variable that names the compiler, those that are looked for without it, and their language.

    On CUDA Triton compiles the code that launches its kernels (triton/runtime/build.py); on the CPU Inductor compiles the
    kernels (torch/_inductor/config.py).
    """
    if device == "cuda":
        return "CC", ("gcc", "clang"), "C"
    return "CXX", ("clang++",) if sys.platform == "darwin" else ("g++",), "C++"
