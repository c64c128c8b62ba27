"""One case on one rank: warm up, time the phases, leave the gradient of the last iteration to be compared."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from warnings import catch_warnings, simplefilter, warn

import torch
from torch import Tensor, nn

from harness.axes.reduction.base import LocalWork, Phases
from harness.rank.assemble import Parts
from harness.rank.clock import Stopwatch
from harness.rank.gradient_store import named_gradients
from harness.rank.material import Material
from harness.rank.memory import peak_bytes, reset_peak
from harness.rank.process_group import World
from harness.schema.context import Context
from harness.schema.seeding import derive_seed


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
class Trial:
    """One case, its parts, and what it works on."""

    parts: Parts
    material: Material
    shards: Sequence[Sequence[int]]
    world: World
    seed: int = 0
    """What a model draws in a step (dropout) comes from it and from the rank, whatever ran before."""

    @property
    def shard_terms(self) -> list[float]:
        """What each rank's batch counts."""
        return [sum(self.material.terms[index] for index in shard) for shard in self.shards]

    def skip_reason(self) -> str | None:
        """Why an option cannot serve this case; None when all can. Equal on all ranks."""
        context = Context(
            device=self.world.device.type,
            backend=self.world.backend,
            world_size=self.world.size,
            couples_samples=self.material.couples_samples,
            shard_sizes=tuple(map(len, self.shards)),
            denominators=tuple(self.shard_terms),
        )
        options = (getattr(self.parts, field.name) for field in fields(self.parts))
        return next((reason for option in options if (reason := option.unsupported(context))), self._counts_nothing())

    def _counts_nothing(self) -> str | None:
        """A mean over no terms is 0/0; under one denominator for all ranks, an empty shard is as good as any."""
        for rank, count in enumerate(self.shard_terms):
            total = sum(self.shard_terms) if self.parts.aggregation.spans_ranks else count
            if not self.parts.normalization.denominator(count, total):
                return f"no target of rank {rank}'s shard counts in the loss: the rank's own mean is 0/0"
        return None

    def measure(self, warm_up: int, iterations: int, enter: Callable[[str], None]) -> Measured:
        """Run all iterations; `enter` is told each phase that begins.

        Timed: the phases alone. Not timed: clearing `.grad`, the barrier of the control group before the first clock read of an
        iteration, reading the events, and writing the numbers down.
        """
        with self.parts.precision.computing(), catch_warnings(record=True) as caught:
            simplefilter("default")
            work = self._local_work()
            phases = self._phases(work)
            stopwatch = Stopwatch(self.world.device, [name for name, _ in phases], enter)
            iterate = partial(self._iterate, work.model, stopwatch, phases)
            rows = [iterate() for _ in range(warm_up)]
            reset_peak(self.world.device)
            rows += [iterate() for _ in range(iterations)]
            peak = peak_bytes(self.world.device)
        return Measured(
            columns=stopwatch.columns,
            seconds=torch.tensor(rows, dtype=torch.float64),
            gradient=[(name, gradient.cpu()) for name, gradient in named_gradients(_trained(work.model))],
            peak_memory_bytes=peak,
            tolerated_warnings=self._sort_out([str(warning.message) for warning in caught]),
        )

    def _iterate(self, model: nn.Module, stopwatch: Stopwatch, phases: Phases) -> list[float]:
        model.zero_grad()
        torch.manual_seed(derive_seed(self.seed, self.material.name, "step", str(self.world.rank)))
        self.world.control.meet()
        return stopwatch.time(phases)

    def _local_work(self) -> LocalWork:
        world, dtype, own = self.world, self.parts.precision.parameter_dtype, self.shards[self.world.rank]
        terms = [self.material.terms[index] for index in own]
        total = sum(self.material.terms) if self.parts.aggregation.spans_ranks else sum(terms)
        model = self.parts.aggregation.wrap(self.material.fresh_model(world.device, dtype), world.measured)
        return LocalWork(
            model=model,
            criterion=self.material.fresh_criterion(world.device, dtype),
            batch=self.material.batch[torch.tensor(own)].to(world.device, dtype),
            terms=tuple(terms),
            denominator=self.parts.normalization.denominator(sum(terms), total),
            accumulating=partial(self.parts.aggregation.accumulating, model),
        )

    def _phases(self, work: LocalWork) -> Phases:
        group, device, sync = self.world.measured, self.world.device, self.parts.sync
        aggregate = partial(self._aggregate, work.parameters) if self.parts.aggregation.spans_ranks else None
        then = [
            ("sync", sync.before_aggregate(group, device)),
            ("aggregate", aggregate),
            ("sync", sync.after_aggregate(group, device)),
        ]
        return [*self.parts.reduction.phases(work), *((name, call) for name, call in then if call)]

    def _aggregate(self, parameters: list[nn.Parameter]) -> None:
        gradients = [_gradient(parameter) for parameter in parameters]
        self.parts.aggregation.finish(gradients, self.world.measured)
        divisor = self.parts.normalization.divisor(self.world.size)
        if divisor != 1:
            torch._foreach_div_(gradients, divisor)

    def _sort_out(self, messages: list[str]) -> list[str]:
        """The warnings that are facts about the mode; the others go to the rank's log."""
        patterns = self.parts.reduction.tolerated_warnings
        facts = [m for m in messages if any(re.search(pattern, m) for pattern in patterns)]
        for message in set(messages) - set(facts):
            warn(message, stacklevel=2)
        return sorted(set(facts))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter that took no part still takes part in the collective, or the other ranks would wait for it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
