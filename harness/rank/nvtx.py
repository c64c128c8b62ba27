"""NVTX ranges for Nsight Systems: the case, its iterations, their phases. None begins between two clock reads of a phase."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from harness.schema.refusal import RefusedError

Enter = Callable[[str], None]


class Ranges:
    """Nested ranges of one case. Begin and end of a range are calls of the host before and after all clock reads of a phase."""

    def __init__(self, case_id: str, warm_up: int) -> None:
        self._case_id, self._warm_up = case_id, warm_up
        self._iteration, self._depth = 0, 0
        self._captured = False

    @contextmanager
    def of_case(self) -> Iterator[None]:
        """The range of the whole case; what an error has left open ends with it."""
        self._push(self._case_id)
        try:
            yield
        finally:
            while self._depth:
                self._pop()
            if self._captured:
                with suppress(RuntimeError):  # the case's own error counts: after it every call of CUDA may fail
                    torch.cuda.profiler.stop()

    def capture(self) -> None:
        """Begin a capture range of the CUDA profiler, which ends with the case: nsys --capture-range=cudaProfilerApi.

        HIP has no such call.
        """
        if torch.version.hip is None:
            torch.cuda.profiler.start()
            self._captured = True

    @contextmanager
    def of_iteration(self) -> Iterator[None]:
        """A range of its number: `warm-up 0`, `iteration 0`."""
        measured = self._iteration - self._warm_up
        self._push(f"iteration {measured}" if measured >= 0 else f"warm-up {self._iteration}")
        self._iteration += 1
        yield
        self._pop()

    def after(self, enter: Enter) -> Enter:
        """Function that calls `enter`, ends the range of the phase before, and begins that of the phase."""

        def entered(phase: str) -> None:
            enter(phase)
            self.leave()
            self._push(phase)

        return entered

    def leave(self) -> None:
        """End the range of a phase: the last one's after the last clock read."""
        if self._depth == _IN_PHASE:
            self._pop()

    def _push(self, name: str) -> None:
        torch.cuda.nvtx.range_push(name)
        self._depth += 1

    def _pop(self) -> None:
        torch.cuda.nvtx.range_pop()
        self._depth -= 1


_IN_PHASE = 3
"""Ranges that are open in a phase: the case, the iteration, the phase."""


def check_nvtx(device: torch.device, *, nvtx: bool) -> None:
    """Raise RefusedError where ranges are asked for and there is no GPU: NVTX is a part of CUDA builds of torch."""
    if nvtx and device.type != "cuda":
        raise RefusedError(
            f"nvtx=true: this run is on the {device.type.upper()}, which has no NVTX ranges; accepted: device=cuda; "
            "try profile=true, which writes traces on the CPU too"
        )
