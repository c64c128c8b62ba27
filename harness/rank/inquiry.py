"""A probe's questions, asked on all ranks together, and their answers gathered."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter

import torch
from torch import Tensor, nn

from harness.axes.precision.base import tf32
from harness.axes.workload.base import Batch, Criterion
from harness.probes.base import Machine, Probe, Question, Subject
from harness.rank.agreement import CaseFailedError, together
from harness.rank.material import Material
from harness.rank.process_group import World
from harness.schema.config import BenchmarkConfig
from harness.schema.record import FAILED, OK, SKIPPED, Asked, Observation
from harness.schema.seeding import derive_seed

Seen = tuple[str, int, Observation]
"""(subject, rank, observation)"""


@dataclass
class Inquiry:
    """One probe: every question becomes a row, and every answer of every rank observations. On rank 0."""

    name: str
    probe: Probe
    asked: list[Asked] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)

    def run(self, world: World, machine: Machine) -> None:
        """Ask everything. All ranks call alike."""
        for question in self.probe.questions(machine):
            started = perf_counter()
            status, reason = self._ask(question, world)
            self.asked.append(Asked(self.name, question.subject, status, reason, perf_counter() - started))

    def _ask(self, question: Question, world: World) -> tuple[str, str]:
        if question.unsupported:
            return SKIPPED, question.unsupported
        try:
            with tf32(False):
                own = together(world.control, lambda: list(question.ask()))
        except CaseFailedError as error:
            world.rebuild_measured()
            return FAILED, str(error)
        by_rank = world.control.gather(torch.tensor([observation.value for observation in own], dtype=torch.float64))
        for rank, values in enumerate(by_rank):
            mine = zip(own, values.tolist(), strict=True)
            self.seen += [
                (question.subject, rank, Observation(seen.setting, seen.quantity, value, "" if rank else seen.text))
                for seen, value in mine
            ]
        return OK, ""


def machine_of(world: World, config: BenchmarkConfig, materials: Iterable[tuple[str, Material]]) -> Machine:
    """What probes are put to."""
    return Machine(
        rank=world.rank,
        size=world.size,
        device=world.device,
        backend=world.backend,
        measured=lambda: world.measured,
        meet=world.control.meet,
        seed=config.seed,
        subjects=tuple(_subject(name, material, world.device, config.seed) for name, material in materials),
        drift=config.drift,
    )


def _subject(name: str, material: Material, device: torch.device, seed: int) -> Subject:
    @cache
    def held(dtype: torch.dtype) -> tuple[Batch, Criterion]:
        return material.batch.to(device, dtype), material.fresh_criterion(device, dtype)

    def forward(model: nn.Module, order: Tensor | None, reduction: str) -> Tensor:
        batch, criterion = held(next(model.parameters()).dtype)
        batch = batch if order is None else batch[order.to(device)]
        loss: Tensor = getattr(criterion, reduction)(model(*batch.inputs), batch.target)
        return loss

    def initialized(seed: int, dtype: torch.dtype) -> nn.Module:
        return material.workload.build_model(seed).to(device, dtype)

    drawn = derive_seed(seed, material.name, "probe")
    return Subject(name, partial(material.fresh_model, device), initialized, forward, len(material.batch), drawn)
