"""Footprint: what memory a case takes more than a bare training step, beside what its options say that they need."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.probes.control import Control
from harness.rank.agreement import together
from harness.rank.trial import Measured, Trial
from harness.schema.case import Baseline, Case, kept_in

COLUMNS = ("peak_memory_bytes", "above_baseline_bytes", "declared_bytes")


@dataclass
class Footprint:
    """Bare steps that were measured, by what they depend on. All ranks call alike."""

    control: Control
    _bare: dict[str, int] = field(default_factory=dict)

    def bare(self, case: Case, trial: Trial) -> int:
        """Bytes that a forward and a backward of this rank's mean loss take. Raises CaseFailedError."""
        key = case.key(kept_in(Baseline.BARE_STEP))
        if key not in self._bare:
            self._bare[key] = together(self.control, lambda: _taken(trial))
        return self._bare[key]

    def of(self, trial: Trial, measured: Measured, bare: int) -> Tensor:
        """What the case took on each rank, as COLUMNS says, [ranks, columns]; everywhere."""
        own = [measured.peak_memory_bytes, measured.taken_memory_bytes - bare, _declared(trial, measured, self.control.rank)]
        return torch.stack(self.control.all_gather(torch.tensor(own)))


def _taken(trial: Trial) -> int:
    """Memory of a bare step. On CUDA the second step counts: cuBLAS keeps its first call's workspace (32 MiB on Hopper)."""
    times = 2 if trial.world.device.type == "cuda" else 1
    return [trial.bare().measure(lambda phase: None).taken_memory_bytes for _ in range(times)][-1]


def _declared(trial: Trial, measured: Measured, rank: int) -> int:
    gradients, parts = [gradient for _, gradient in measured.gradient], trial.parts
    samples = len(trial.cut.entering()[rank])
    sent = sum(gradient.numel() for gradient in gradients) * (
        parts.communication.dtype.itemsize if parts.communication.dtype else 0
    )
    buffers = parts.aggregation.needs_bytes(gradients, trial.world.size)
    if buffers and parts.sync.asynchronous:
        buffers = sum(gradient.nbytes for gradient in gradients)  # all of them at once
    return buffers + parts.reduction.needs_bytes(gradients, samples) + sent
