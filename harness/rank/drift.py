"""Does a difference matter? Cases go on for some optimizer steps from equal parameters, and are compared on the way."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from harness.numerics.discrepancy import compare_all
from harness.probes.control import Control
from harness.rank.agreement import CaseFailedError, together
from harness.rank.gradient_store import GradientStore
from harness.rank.trial import Trial
from harness.schema.case import Case
from harness.schema.config import DriftConfig
from harness.schema.record import CASE, Drift

BATCHES = 8
"""Different batches that the steps use in turn."""


@dataclass
class Drifts:
    """Parameters of the cases of one setting after some steps, on rank 0. All ranks call alike."""

    config: DriftConfig
    control: Control
    store: GradientStore
    order: Mapping[Case, int] = field(default_factory=dict)
    """All cases of the launch, to their places in it: a later one is held against the earlier ones."""
    held: frozenset[tuple[str, str]] = frozenset()
    """(case_id, case_id) of cases whose rows say already how far the one drifts from the other."""
    losses: dict[Case, dict[Case, dict[str, list[float]]]] = field(default_factory=lambda: defaultdict(dict))
    """Setting to case to optimizer to the loss at each checkpoint."""

    def of(self, case: Case, trial: Trial) -> list[Drift]:
        """Train the case with every optimizer, and hold it against the earlier cases of its setting. Raises CaseFailedError."""
        if not self.config.steps:
            return []
        try:
            losses = {name: self._train(case, trial, name, rate) for name, rate in self.config.optimizers.items()}
        except CaseFailedError:
            self._drop(case)
            raise
        return together(self.control, lambda: self._rows(case, losses) if self.control.rank == 0 else [])

    def _rows(self, case: Case, losses: dict[str, list[float]]) -> list[Drift]:
        self._forget_other_settings(case)
        others = list(self.losses[case.setting])
        self.losses[case.setting][case] = losses
        pairs = [sorted((case, other), key=self.order.__getitem__) for other in others]
        new = [(later, earlier) for earlier, later in pairs if (later.case_id, earlier.case_id) not in self.held]
        return [row for later, earlier in new for row in self._against(later, earlier)]

    def _train(self, case: Case, trial: Trial, optimizer: str, rate: float) -> list[float]:
        """The mean loss at each checkpoint, on rank 0."""
        keep = partial(self._keep, case, optimizer)
        own = together(self.control, lambda: trial.train(optimizer, rate, self.config.checkpoints, keep))
        by_rank = self.control.gather(torch.tensor(own, dtype=torch.float64))
        return torch.stack(by_rank).sum(0).tolist() if by_rank and trial.cut.spans_ranks else own

    def _keep(self, case: Case, optimizer: str, step: int, parameters: list[tuple[str, Tensor]]) -> None:
        if self.control.rank == 0:
            self.store.save(_name(case, optimizer, step), parameters)

    def _against(self, case: Case, other: Case) -> list[Drift]:
        rows = []
        for optimizer, own in self.losses[case.setting][case].items():
            theirs = self.losses[case.setting][other][optimizer]
            for step, loss, against_loss in zip(self.config.checkpoints, own, theirs, strict=True):
                stored = (self.store.load(_name(one, optimizer, step)) for one in (case, other))
                apart, _ = compare_all(*stored)
                found = (apart.max_abs, apart.relative_l2, apart.bitwise_equal)
                rows.append(Drift(case.case_id, f"{CASE}{other.case_id}", optimizer, step, loss, against_loss, *found))
        return rows

    def _forget_other_settings(self, case: Case) -> None:
        for setting in [setting for setting in self.losses if setting != case.setting]:
            for done in self.losses.pop(setting):
                self._drop(done)

    def _drop(self, case: Case) -> None:
        checkpoints = self.config.checkpoints
        self.store.drop(_name(case, optimizer, step) for optimizer in self.config.optimizers for step in checkpoints)


def _name(case: Case, optimizer: str, step: int) -> str:
    return f"{optimizer}.{step}.{case.case_id}"
