"""One case on one rank: warm up, time the phases, leave the gradient of the last iteration to be compared."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TypeVar
from warnings import catch_warnings, simplefilter, warn

import torch
from torch import Tensor, nn

from harness.axes.fault.base import Contribution, Pass
from harness.axes.reduction.base import LocalWork, Phases
from harness.probes.descent import OPTIMIZERS
from harness.rank.assemble import Parts
from harness.rank.clock import Stopwatch
from harness.rank.cut import Cut
from harness.rank.gradient_store import named_gradients
from harness.rank.material import Material
from harness.rank.memory import peak_bytes, reset_peak
from harness.rank.process_group import World
from harness.schema.context import Context
from harness.schema.seeding import derive_seed

T = TypeVar("T")
Keep = Callable[[int, list[tuple[str, Tensor]]], None]


@dataclass(frozen=True)
class Measured:
    """What a rank saw of a case. Raw."""

    columns: list[tuple[str, str]]
    """(phase, clock) of each column of `seconds`."""
    seconds: Tensor
    """float64 [warm_up + iterations, columns]."""
    gradient: list[tuple[str, Tensor]]
    """The last iteration's, on the CPU: (parameter name, tensor)."""
    peak_memory_bytes: int
    tolerated_warnings: list[str]


@dataclass(frozen=True)
class Rig:
    """A case made ready to iterate: its own model, and what runs on each of its batches in turn."""

    model: nn.Module
    works: list[LocalWork]
    phases: list[Phases]

    def names(self) -> list[str]:
        """Of the phases."""
        return [name for name, _ in self.phases[0]]


@dataclass(frozen=True)
class Trial:
    """One case, its parts, and what it works on."""

    parts: Parts
    material: Material
    world: World
    warm_up: int
    measured: int
    """Iterations after the warm-up."""
    seed: int = 0
    """What a model draws in a step (dropout) comes from it and from the rank, whatever ran before."""

    @property
    def iterations(self) -> int:
        """In all. The result of the last one is compared."""
        return self.warm_up + self.measured

    @property
    def cut(self) -> Cut:
        """The batches over the ranks."""
        return Cut(self.parts, self.material, self.world.size)

    def skip_reason(self) -> str | None:
        """Why an option cannot serve this case; None when all can. Equal on all ranks."""
        context = Context(
            device=self.world.device.type,
            backend=self.world.backend,
            world_size=self.world.size,
            spans_ranks=self.cut.spans_ranks,
            averages=self.parts.aggregation.averages,
            in_backward=self.parts.aggregation.in_backward,
            couples_samples=self.material.couples_samples,
            shard_sizes=tuple(map(len, self.cut.shards())),
            denominators=tuple(self.cut.counts()),
        )
        options = (getattr(self.parts, field.name) for field in fields(self.parts))
        return next((reason for option in options if (reason := option.unsupported(context))), self.cut.counts_nothing())

    def measure(self, enter: Callable[[str], None]) -> Measured:
        """Run all iterations; `enter` is told each phase that begins.

        Timed: the phases alone. Not timed: clearing `.grad`, the barrier of the control group before the first clock read of an
        iteration, reading the events, and writing the numbers down.
        """
        with self.parts.precision.computing(), catch_warnings(record=True) as caught:
            simplefilter("default")
            rig = self._rig(self.parts.fault.batches)
            stopwatch = Stopwatch(self.world.device, rig.names(), enter)
            rows = []
            for left in reversed(range(self.iterations)):
                if left == self.measured - 1:
                    reset_peak(self.world.device)
                rows.append(self._iterate(rig.model, partial(stopwatch.time, rig.phases[left % len(rig.phases)])))
            peak = peak_bytes(self.world.device)
        return Measured(
            columns=stopwatch.columns,
            seconds=torch.tensor(rows, dtype=torch.float64),
            gradient=[(name, gradient.cpu()) for name, gradient in named_gradients(_trained(rig.model))],
            peak_memory_bytes=peak,
            tolerated_warnings=self._sort_out([str(warning.message) for warning in caught]),
        )

    def train(self, optimizer: str, rate: float, checkpoints: list[int], keep: Keep) -> list[float]:
        """Optimizer steps from the initial parameters, over the batches in turn; `keep` is given the step and the parameters.

        Returns, for each checkpoint, this rank's part of the mean loss of the compared batch.
        """
        losses = []
        with self.parts.precision.computing(), catch_warnings():
            simplefilter("ignore")  # the measured iterations have told them
            rig = self._rig(len(self.material.batches))
            parameters = _trained(rig.model)
            stepper = OPTIMIZERS[optimizer](parameters.values(), lr=rate)
            for step in range(1, max(checkpoints) + 1):
                self._iterate(rig.model, partial(_run, rig.phases[(step - 1) % len(rig.phases)]))
                stepper.step()
                if step in checkpoints:
                    keep(step, [(name, parameter.detach()) for name, parameter in parameters.items()])
                    losses.append(self._own_loss(rig.works[0]))
        return losses

    @torch.no_grad()
    def _own_loss(self, work: LocalWork) -> float:
        summed = work.criterion.sum(work.model(*work.batch.inputs), work.batch.target)
        return float(summed) / (sum(self.cut.counts()) if self.cut.spans_ranks else work.count)

    def _iterate(self, model: nn.Module, run: Callable[[], T]) -> T:
        self.parts.fault.clear(model)
        torch.manual_seed(derive_seed(self.seed, self.material.name, "step", str(self.world.rank)))
        self.world.control.meet()
        return run()

    def _rig(self, batches: int) -> Rig:
        model = self.material.fresh_model(self.world.device, self.parts.precision.parameter_dtype)
        wrapped = self.parts.aggregation.wrap(self.parts.fault.model(model), self.world.measured)
        parameters = list(_trained(model).values())
        around_pass = self.parts.fault.passes(parameters)
        aggregate = partial(self._aggregate, parameters, self.parts.fault.contribution(self.world.rank))
        works = [self._local_work(wrapped, around_pass, lag) for lag in range(batches)]
        return Rig(model, works, [self._phases(work, aggregate) for work in works])

    def _local_work(self, model: nn.Module, around_pass: Pass, lag: int) -> LocalWork:
        world, rank, dtype = self.world, self.world.rank, self.parts.precision.parameter_dtype
        own = self.cut.entering(lag)[rank]
        batch = self.material.batches[lag][torch.tensor(own)].to(world.device, dtype)
        return LocalWork(
            model=model,
            criterion=self.material.fresh_criterion(world.device, dtype),
            batch=replace(batch, inputs=self.parts.fault.inputs(rank, batch.inputs)),
            terms=tuple(self.material.batch_terms[lag][index] for index in own),
            denominator=self.parts.fault.denominator(self.cut.denominators(lag)[rank], self.cut.divisor, world.size),
            accumulating=partial(self.parts.aggregation.accumulating, model),
            in_backward=self.parts.aggregation.in_backward,
            needs_own_forward=self.parts.aggregation.needs_own_forward,
            around_pass=around_pass,
        )

    def _phases(self, work: LocalWork, aggregate: Callable[[], None]) -> Phases:
        group, device, sync = self.world.measured, self.world.device, self.parts.sync
        then = [
            ("sync", sync.before_aggregate(group, device)),
            ("aggregate", aggregate if self.cut.spans_ranks else None),
            ("sync", sync.after_aggregate(group, device)),
        ]
        return [*self.parts.reduction.phases(work), *((name, call) for name, call in then if call)]

    def _aggregate(self, parameters: list[nn.Parameter], contribute: Contribution) -> None:
        gradients, group, fault = [_gradient(parameter) for parameter in parameters], self.world.measured, self.parts.fault
        contribute(gradients)
        fault.total(lambda summed: self.parts.aggregation.finish(summed, group), gradients, group, self.world.control.meet)
        divisor = fault.divisor(1 if self.parts.aggregation.averages else self.cut.divisor, self.world.size)
        if divisor != 1:
            torch._foreach_div_(gradients, divisor)

    def _sort_out(self, messages: list[str]) -> list[str]:
        """The warnings that are facts about the mode; the others go to the rank's log."""
        patterns = self.parts.reduction.tolerated_warnings
        facts = [m for m in messages if any(re.search(pattern, m) for pattern in patterns)]
        for message in set(messages) - set(facts):
            warn(message, stacklevel=2)
        return sorted(set(facts))


def _run(phases: Phases) -> None:
    for _, call in phases:
        call()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter that took no part still takes part in the collective, or the other ranks would wait for it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
