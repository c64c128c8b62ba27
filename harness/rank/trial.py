"""One case on one rank: warm up, time the phases, leave the gradient of the last iteration to be compared."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import nan
from time import monotonic
from typing import TypeVar
from warnings import catch_warnings, simplefilter, warn

import torch
from torch import Tensor, nn

from harness.axes.reduction.base import Phases
from harness.probes.descent import OPTIMIZERS
from harness.rank.alone import bare_step, on_one_rank, silent
from harness.rank.clock import Stopwatch, unseen
from harness.rank.common_clock import Offset
from harness.rank.exposure import Twins
from harness.rank.loop import Loop
from harness.rank.losses import adapt_losses
from harness.rank.material import Material, step_seed
from harness.rank.memory import DeviceMemory, Meter, bytes_now
from harness.rank.nvtx import Ranges
from harness.rank.pace import Pace
from harness.rank.process_group import World
from harness.rank.profiling import Tracer, named
from harness.rank.queued import NOT_AHEAD, QueuedStopwatch, aligning, can_hold, host_waits
from harness.rank.rig import Builder, Cut, Parts, Rig
from harness.rank.tap import Save, Tap
from harness.rank.usage import Usage, idle_batch
from harness.schema.config import UntilConfig
from harness.schema.context import Context
from harness.schema.record import QUEUED_STEP

T = TypeVar("T")
_SETTLING = 40
"""Halvings of a loss scale; from 2^16 they end below the least float16."""
Keep = Callable[[int, list[tuple[str, Tensor]]], None]


@dataclass(frozen=True)
class Measured:
    """What a rank saw of a case. Raw."""

    columns: list[tuple[str, str]]
    """(phase, clock) of each column of `seconds`."""
    seconds: Tensor
    """float64 [warm_up + iterations, columns]; where a case was visited several times, that of each visit in turn."""
    visits: list[tuple[int, int]]
    """(warm-ups, measured iterations) of each visit."""
    stopped: str
    """Reason why no more iterations were made, where their number was left open; else empty."""
    gradient: list[tuple[str, Tensor]]
    """The last iteration's, on the CPU: (parameter name, tensor)."""
    peak_memory_bytes: int
    taken_memory_bytes: int
    """At the same peak, above what was there before the case began."""
    tolerated_warnings: list[str]
    loss: float = nan
    """The rank's sum of losses of the compared batch / denominator, as the step computes it; NaN where it does not tell."""
    loss_recorded: bool = False
    """True if the reduction has passed a loss of this rank to `work.note`."""
    not_queued: str = ""
    """Reason why no step was timed with the host ahead of the device; empty where one was, or where none was asked for."""
    launch_s: float = 0.0
    """Longest launch of the last steps that were timed so; 0 where none was."""
    window: tuple[float, float] = (0.0, 0.0)
    """Begin and end of the measured iterations of the last visit, by the monotonic clock of the host."""
    device_memory: DeviceMemory | None = None


@dataclass(frozen=True)
class _Queued:
    """Iterations that were timed with the host ahead of the device; `seconds` has a row for each iteration of the loop."""

    columns: list[tuple[str, str]]
    seconds: Tensor
    reason: str
    launch_s: float = 0.0


@dataclass(frozen=True)
class Trial:
    """One case, its parts, and what it works on."""

    parts: Parts
    material: Material
    world: World
    asked_warm_up: int
    measured: int
    """Iterations after the warm-up."""
    until: UntilConfig = field(default_factory=UntilConfig)
    """When it is enough, where the number of iterations is left open."""
    exposed: bool = False
    """Whether the same step without communication is run in turn with the case."""
    queued: bool = False
    """True if, on CUDA, as many iterations again are timed with the host ahead of the device."""
    launch_s: float = 0.0
    """Longest launch of such an iteration in the last visit, in seconds; 0 where there was none."""
    offset: Offset = field(default_factory=Offset)
    """Of this rank's clock."""
    seed: int = 0
    """What a model draws in a step (dropout) comes from it and from the rank, whatever ran before."""
    usage: Usage = field(default_factory=Usage)

    @property
    def warm_up(self) -> int:
        """Iterations before the measured ones: as asked for, and as many as the aggregation needs."""
        return max(self.asked_warm_up, self.parts.aggregation.warm_up)

    @property
    def iterations(self) -> int:
        """In all. The result of the last one is compared."""
        return self.warm_up + self.measured

    @property
    def cut(self) -> Cut:
        """The batches over the ranks."""
        return Cut(self.parts, self.material, self.world.size)

    @property
    def second_forward(self) -> bool:
        """Whether the last of a rank's several backward passes takes a forward of its own."""
        twice = self.parts.aggregation.needs_own_forward and self.parts.reduction.keeps_graph
        return twice and any(len(self.parts.reduction.passes(own)) > 1 for own in self.cut.terms())

    def skip_reason(self) -> str | None:
        """Why an option cannot serve this case; None when all can. Equal on all ranks."""
        if not self.material.trains:
            return "the model has no parameter that gets a gradient: there is nothing to aggregate"
        if self.material.sparse:
            return f"sparse gradients cannot be aggregated: {', '.join(self.material.sparse)}; try sparse=False"
        options = (getattr(self.parts, axis.name) for axis in fields(self.parts))
        context = self._context()
        return next((reason for option in options if (reason := option.unsupported(context))), self.cut.counts_nothing())

    def _context(self) -> Context:
        parts, cut = self.parts, self.cut
        return Context(
            device=self.world.device.type,
            backend=self.world.backend,
            world_size=self.world.size,
            ranks_per_node=self.world.ranks_per_node,
            spans_ranks=cut.spans_ranks,
            averages=parts.aggregation.averages,
            in_backward=parts.aggregation.in_backward,
            separates_samples=parts.reduction.separates_samples,
            coupling=self.material.coupling,
            shard_sizes=tuple(map(len, cut.shards())),
            denominators=tuple(cut.counts()),
            passes=tuple(len(parts.reduction.passes(own)) for own in cut.terms()),
            strided=self.material.strided,
            unequal_use=self.usage.unequal,
            varying_use=self.usage.varying,
            follows_sync=parts.aggregation.follows_sync,
            scales_loss=parts.precision.scaler(self.world.device) is not None,
        )

    def measure(self, enter: Callable[[str], None], ranges: Ranges | None = None) -> Measured:
        """Run all iterations; `enter` is called with each phase that begins, and `ranges` marks them for a profiler.

        Timed: the phases alone. Not timed: clearing `.grad`, the barrier of the control group before the first clock read of an
        iteration, reading the events, and writing the numbers down.
        """
        with self._computing(), catch_warnings(record=True) as caught:
            simplefilter("default")
            twins = self._twins()
            meter = Meter(self.world.device)
            rig = self._rig(self.parts.fault.batches)
            entered, leave = (ranges.after(enter), ranges.leave) if ranges else (enter, None)
            stopwatch = Stopwatch(self.world.device, rig.names(), entered, self._arriving, self.offset.ahead_s, leave)
            pace = Pace(self.world.control, self.until)
            loop = Loop(self.world.device, rig, stopwatch, pace, twins, self._iterate, ranges)
            stopped = loop.run(self.warm_up, self.measured)
            window = loop.began, monotonic()
            peak, device_memory = loop.peak_bytes, meter.on_device(loop.reserved_bytes)
            gradient = rig.gradient()
            seconds = torch.tensor(loop.rows, dtype=torch.float64)
            queued = self._queued(loop, enter)
        return Measured(
            columns=loop.columns + queued.columns,
            seconds=torch.cat([seconds, queued.seconds], dim=1),
            visits=[(self.warm_up, len(loop.rows) - self.warm_up)],
            stopped=stopped,
            gradient=gradient,
            peak_memory_bytes=peak - (twins.held_bytes if twins else 0),
            taken_memory_bytes=meter.taken(peak),
            tolerated_warnings=self._sort_out([str(warning.message) for warning in caught]),
            loss=rig.own_loss(),
            loss_recorded=rig.loss.recorded,
            not_queued=queued.reason,
            launch_s=queued.launch_s,
            window=window,
            device_memory=device_memory,
        )

    def _queued(self, loop: Loop, enter: Callable[[str], None]) -> "_Queued":
        """Make the measured iterations again with the host ahead of the device.

        They come last, when the gradient and the memory have been taken: what an iteration leaves for the next one (the
        residual of PowerSGD, a planted fault) then changes no result, and no second model is needed.
        """
        rows = torch.full((len(loop.rows), 0), nan, dtype=torch.float64)
        if not (self.queued and can_hold(self.world.device)):
            return _Queued([], rows, "")
        reason = host_waits(self.parts, self.world, spans_ranks=self.cut.spans_ranks)
        if reason:
            return _Queued([], rows, reason)
        loop.rig.model.zero_grad(set_to_none=True)  # the gradient that was taken may share its memory
        align, launch_s = aligning(self.world), max(loop.host_s, self.launch_s)

        def make(names: Sequence[str], entered: Callable[[str], None] = unseen) -> QueuedStopwatch:
            return QueuedStopwatch(self.world.device, names, self.world.control, align, launch_s, entered)

        stopwatch, twins = make(loop.rig.names(), enter), loop.twins.watched(make) if loop.twins else None
        again = replace(loop, stopwatch=stopwatch, twins=twins, ranges=None, rows=[])
        again.repeat(len(loop.rows) - self.warm_up)
        warm_up = torch.full((self.warm_up, len(again.columns)), nan, dtype=torch.float64)
        rows = torch.cat([warm_up, torch.tensor(again.rows, dtype=torch.float64)])
        steps = rows[:, again.columns.index(QUEUED_STEP)]
        return _Queued(again.columns, rows, "" if steps.isfinite().any() else NOT_AHEAD, stopwatch.launch_s)

    @property
    def _arriving(self) -> str:
        """The phase in which ranks wait for the last one; none where they do so all through backward."""
        return "aggregate" if self.cut.spans_ranks and not self.parts.aggregation.in_backward else ""

    def _twins(self) -> Twins | None:
        if not self.exposed or not self.cut.spans_ranks:
            return None
        before, aggregation = bytes_now(self.world.device), self.parts.aggregation
        cut = Cut(silent(self.parts), self.material, self.world.size)
        rig = Builder(cut, self.world, self.usage).build(self.parts.fault.batches)
        sent = self.parts.communication.dtype or aggregation.sends
        twins = Twins(rig, self.world, sent, as_many_bytes=aggregation.sends_gradients)
        twins.held_bytes = bytes_now(self.world.device) - before
        return twins

    def train(self, optimizer: str, rate: float, checkpoints: list[int], keep: Keep) -> list[float]:
        """Optimizer steps from the initial parameters, over the batches in turn; `keep` is given the step and the parameters.

        Returns, for each checkpoint, this rank's part of the mean loss of the compared batch.
        """
        losses = []
        with self._computing(), catch_warnings():
            simplefilter("ignore")  # the measured iterations have told them
            rig = self._rig(len(self.material.batches))
            stepper = OPTIMIZERS[optimizer](rig.trained().values(), lr=rate)
            for step in range(1, max(checkpoints) + 1):
                if not self._overflows(rig, (step - 1) % len(rig.phases)):
                    stepper.step()
                if step in checkpoints:
                    keep(step, rig.parameters())
                    losses.append(self._own_loss(rig))
        return losses

    def trace(self, tracer: Tracer, case_id: str) -> None:
        """Iterate under the profiler, on a rig of its own, with the phases as named ranges. Nothing is timed, nothing kept."""
        with self._computing(), catch_warnings():
            simplefilter("ignore")  # the measured iterations have told them
            rig = self._rig(self.parts.fault.batches)
            passes = [named(phases) for phases in rig.phases]
            tracer.record(
                case_id, lambda left: self._iterate(rig.model, passes[left % len(passes)]), self.measured, self.warm_up
            )

    def tapped(self, save: Save) -> Tap:
        """Iterate once more, untimed; what passes through the last iteration is handed to `save`."""
        with self._computing(), catch_warnings():
            simplefilter("ignore")  # the measured iterations have told them
            rig = self._rig(self.parts.fault.batches)
            tap = Tap(rig, save)
            for left in reversed(range(self.iterations)):
                phases = rig.phases[left % len(rig.phases)]
                self._iterate(rig.model, partial(_run, phases if left else tap.around(phases)))
            tap.ended()
        return tap

    def gradient(self) -> list[Tensor]:
        """What one untimed iteration leaves on this rank, parameter by parameter."""
        with self._computing(), catch_warnings():
            simplefilter("ignore")
            rig = self._rig(1)
            self._iterate(rig.model, partial(_run, rig.phases[0]))
            return [tensor for _, tensor in rig.gradient()]

    def once(self, parts: Parts) -> "Trial":
        """A variant of the case, for one iteration."""
        return replace(self._once(), parts=parts, asked_warm_up=0)

    def alone(self) -> "Trial":
        """The case on one rank that has the whole batch: what its gradient is without any aggregation."""
        parts, world = on_one_rank(self.parts), self.world.alone()
        return replace(self._once(), parts=parts, world=world, asked_warm_up=0)

    def bare(self) -> "Trial":
        """Forward and backward of this rank's mean loss, and nothing else: what the case's memory is held against."""
        return replace(self._once(), parts=bare_step(self.parts), asked_warm_up=1)

    def _once(self) -> "Trial":
        return replace(self, measured=1, until=UntilConfig(), exposed=False, queued=False, usage=Usage())

    @torch.no_grad()
    def _own_loss(self, rig: Rig) -> float:
        """A rank on which nothing counts passes through the model all the same: others may wait for it there."""
        work, device, dtype = rig.works[0], self.world.device, self.parts.precision.parameter_dtype
        batch = work.batch if work.count else idle_batch(self.material).to(device, dtype)
        criterion = adapt_losses(self.material.fresh_criterion(device, dtype), self.parts.precision, device, None)
        summed = criterion.sum(rig.exchange.model(*batch.inputs), batch.target)
        rig.exchange.rest()
        total = sum(self.cut.counts()) if self.cut.spans_ranks else work.count
        return float(summed) / total if work.count else 0.0

    def _overflows(self, rig: Rig, batch: int) -> bool:
        """Iterate on a batch; whether this rank's scaled gradient came out infinite, so that an optimizer would not step."""
        before = rig.scaler.get_scale() if rig.scaler else 0.0
        self._iterate(rig.model, partial(_run, rig.phases[batch]))
        return rig.scaler is not None and rig.scaler.get_scale() < before

    def _iterate(self, model: nn.Module, run: Callable[[], T]) -> T:
        self.parts.fault.clear(model)
        torch.manual_seed(step_seed(self.seed, self.material.name, self.world.rank))
        self.world.control.meet()
        return run()

    def _rig(self, batches: int) -> Rig:
        """Where the loss is scaled, at a scale at which no batch of any rank overflows; each try begins anew."""
        builder, scale = Builder(self.cut, self.world, self.usage), None
        for _ in range(_SETTLING):
            rig = builder.build(batches, scale)
            if rig.scaler is None:
                return rig
            scale = rig.scaler.get_scale()
            overflowed = sum(self._overflows(rig, batch) for batch in range(batches))  # as many iterations on every rank
            if not self.world.control.any(overflowed > 0):
                return builder.build(batches, scale)
            scale /= 2
        return builder.build(batches, scale)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with ExitStack() as flags:
            for option in (self.parts.precision, self.parts.determinism, self.parts.execution):
                flags.enter_context(option.computing())
            yield

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
