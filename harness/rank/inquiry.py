"""A probe's questions, asked on all ranks together, and their answers gathered."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from time import perf_counter

import torch
from torch import Tensor, nn

from harness.axes.precision.base import tf32
from harness.axes.workload.base import Batch, Criterion
from harness.probes.base import CannotError, Machine, Probe, Question, Subject
from harness.probes.control import Control
from harness.rank.agreement import CaseFailedError, together
from harness.rank.clock import Stopwatch
from harness.rank.in_a_row import ways
from harness.rank.kept import Kept
from harness.rank.material import Material
from harness.rank.memory import available_bytes
from harness.rank.preflight import gpu_uuid
from harness.rank.process_group import World
from harness.rank.writer import Seen
from harness.schema.config import BenchmarkConfig
from harness.schema.record import FAILED, OK, SKIPPED, Asked, Observation, Timing
from harness.schema.seeding import derive_seed


@dataclass
class Inquiry:
    """One probe: every question becomes a row, and every answer of every rank observations. On rank 0."""

    name: str
    probe: Probe
    asked: list[Asked] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    _kept: Kept | None = None
    _answered: frozenset[str] = frozenset()
    """Subjects of questions that an earlier world has answered."""

    def take_up(self, kept: Kept, control: Control) -> None:
        """Go on after the answers of an earlier world, where questions are independent. All ranks call alike."""
        if not self.probe.independent:
            return
        if control.rank == 0:
            self._kept = kept
            self.asked, self.seen = kept.read()
        told = control.all_gather_text(json.dumps([asked.subject for asked in self.asked]))[0]
        self._answered = frozenset(json.loads(told))

    def run(self, world: World, machine: Machine) -> None:
        """Ask everything that is not answered. All ranks call alike."""
        world.control.changed = {}
        questions = self.probe.questions(machine)
        for question in questions:
            if question.subject in self._answered:
                continue
            world.check_default()  # the question before may have broken it
            started = perf_counter()
            status, reason = self._ask(question, world)
            self.asked.append(Asked(self.name, question.subject, status, reason, perf_counter() - started))
            if self._kept:
                self._kept.write(self.asked, self.seen)
        places = {question.subject: place for place, question in enumerate(questions)}
        self.asked.sort(key=lambda asked: places.get(asked.subject, -1))
        self.seen.sort(key=lambda seen: places.get(seen[0], -1))

    def _ask(self, question: Question, world: World) -> tuple[str, str]:
        if question.unsupported:
            return SKIPPED, question.unsupported
        try:
            with tf32(False):
                own, cannot = together(world.control, partial(_answer, question))
        except CaseFailedError as error:
            world.rebuild_measured()
            return FAILED, str(error)
        if cannot:
            return SKIPPED, cannot
        by_rank = world.control.gather(torch.tensor([_number(seen) for seen in own], dtype=torch.float64))
        for rank, values in enumerate(by_rank):
            self.seen += [
                (question.subject, rank, _of(rank, seen, value)) for seen, value in zip(own, values.tolist(), strict=True)
            ]
        return OK, ""


def _answer(question: Question) -> tuple[list[Observation | Timing], str]:
    """What this rank sees, or why the machine turns out not to have it."""
    try:
        return list(question.ask()), ""
    except CannotError as error:
        return [], str(error)


def _number(seen: Observation | Timing) -> float:
    return seen.seconds if isinstance(seen, Timing) else seen.value


def _of(rank: int, seen: Observation | Timing, number: float) -> Observation | Timing:
    """What `rank` saw, of which rank 0 knows its own twin and the number."""
    if isinstance(seen, Timing):
        return replace(seen, seconds=number)
    return replace(seen, value=number, text="" if rank else seen.text)


def machine_of(world: World, config: BenchmarkConfig, materials: Iterable[tuple[str, Material]]) -> Machine:
    """What probes are put to."""
    stopwatch = Stopwatch(world.device, ["call"], lambda phase: None)

    def time(call: Callable[[], None]) -> dict[str, float]:
        read = zip(stopwatch.columns, stopwatch.time([("call", call)]), strict=True)
        return {clock: seconds for (phase, clock), seconds in read if phase == "call"}

    sharing = _sharing(world)

    def free() -> int:
        own = torch.tensor(available_bytes(world.device, sharing))
        return min(int(theirs) for theirs in world.control.all_gather(own))

    return Machine(
        rank=world.rank,
        size=world.size,
        device=world.device,
        backend=world.backend,
        measured=lambda: world.measured,
        meet=world.control.meet,
        time=time,
        in_a_row=partial(ways, world),
        free_bytes=free,
        seed=config.seed,
        subjects=tuple(_subject(name, material, world.device, config.seed) for name, material in materials),
        drift=config.drift,
    )


def _sharing(world: World) -> int:
    """Ranks that use the memory of this rank's device, itself among them: those of one GPU, or on the CPU of one host."""
    own = gpu_uuid(world.device)
    uuids = world.control.all_gather_text(own or "")
    return uuids.count(own) if own else world.ranks_per_node or world.size


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
        return material.initialized(seed).to(device).to(dtype)

    drawn = derive_seed(seed, material.name, "probe")
    return Subject(name, partial(material.fresh_model, device), initialized, forward, len(material.batch), drawn)
