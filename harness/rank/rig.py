"""Parts of a case (the objects of its options), its cut (the samples of each rank), and its rig, which is ready to iterate."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from harness.axes.aggregation.base import Aggregation, Exchange, Fabric, Issue
from harness.axes.batchnorm.base import Batchnorm
from harness.axes.clip.base import Clip
from harness.axes.communication.base import Communication
from harness.axes.determinism.base import Determinism
from harness.axes.execution.base import Execution
from harness.axes.fault.base import Fault
from harness.axes.normalization.base import Normalization
from harness.axes.precision.base import Precision
from harness.axes.reduction.base import LocalWork, Phases, Reduction
from harness.axes.sharding.base import Sharding
from harness.axes.sync.base import Sync
from harness.axes.workload.base import Workload
from harness.rank.losses import LossRecord, adapt_losses, adapt_model
from harness.rank.material import Material
from harness.rank.process_group import World
from harness.rank.usage import Usage, check_dense, idle_batch
from harness.tensors import collectives

Summing = Callable[[list[Tensor]], None]


@dataclass(frozen=True)
class Parts:
    """The objects of a case, one an axis. Cases that ask for the same option share its object."""

    workload: Workload
    reduction: Reduction
    normalization: Normalization
    sharding: Sharding
    aggregation: Aggregation
    sync: Sync
    precision: Precision
    fault: Fault
    communication: Communication
    determinism: Determinism
    execution: Execution
    batchnorm: Batchnorm
    clip: Clip


@dataclass(frozen=True)
class Cut:
    """A case's batches over its ranks. `lag` 0 is the last iteration's batch, the one that is compared. Equal on all ranks."""

    parts: Parts
    material: Material
    world_size: int

    @property
    def spans_ranks(self) -> bool:
        """True if the aggregation sums over ranks."""
        return self.parts.aggregation.spans_ranks

    def shards(self, lag: int = 0) -> list[list[int]]:
        """Each rank's samples."""
        return self.parts.sharding.shards(self.material.batch_terms[lag], self.world_size)

    def terms(self, lag: int = 0) -> list[list[float]]:
        """Return the terms of each sample's loss: [rank][sample]."""
        counts = self.material.batch_terms[lag]
        return [[counts[index] for index in shard] for shard in self.shards(lag)]

    def entering(self, lag: int = 0) -> list[list[int]]:
        """The samples that reach each rank's model: all of its shard, but for a planted fault."""
        enters = self.parts.fault.enters
        return [[shard[place] for place in enters(rank, len(shard))] for rank, shard in enumerate(self.shards(lag))]

    def counts(self, lag: int = 0) -> list[float]:
        """Return the terms of the loss of each rank's batch."""
        terms = self.material.batch_terms[lag]
        return [sum(terms[index] for index in shard) for shard in self.entering(lag)]

    @property
    def divisor(self) -> int:
        """Divisor of the sum over ranks; the aggregation divides where it averages. 1 where nothing is summed."""
        if not self.spans_ranks:
            return 1
        return self.world_size if self.parts.aggregation.averages else self.parts.normalization.divisor(self.world_size)

    def denominators(self, lag: int = 0) -> list[float]:
        """Return the divisor of each rank's sum of losses; with `divisor` it gives the normalization."""
        normalization, counts = self.parts.normalization, self.counts(lag)
        if not self.spans_ranks:
            return [normalization.denominator(own, own) for own in counts]
        share = normalization.divisor(self.world_size) / self.divisor
        return [normalization.denominator(own, sum(counts)) * share for own in counts]

    def loss(self, ranks: Sequence[float]) -> float:
        """Mean loss of the batch, of each rank's sum of losses / its denominator; of rank 0's where nothing is summed."""
        return sum(ranks) / self.divisor if self.spans_ranks else ranks[0]

    def counts_nothing(self) -> str | None:
        """A mean over no terms is 0/0, that of no samples 0; under one denominator for all, such a shard is as good as any."""
        for lag in range(len(self.material.batches)):
            for rank, (denominator, own) in enumerate(zip(self.denominators(lag), self.entering(lag), strict=True)):
                if own and not denominator:
                    return f"no target of rank {rank}'s shard counts in the loss: the rank's own mean is 0/0"
        return None


@dataclass(frozen=True)
class Rig:
    """A case's own model, and what runs on each of its batches in turn."""

    model: nn.Module
    exchange: Exchange
    works: list[LocalWork]
    phases: list[Phases]
    scaler: GradScaler | None
    loss: LossRecord
    """Losses of the compared batch."""

    def names(self) -> list[str]:
        """Of the phases."""
        return [name for name, _ in self.phases[0]]

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that get a gradient."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def gradient(self) -> list[tuple[str, Tensor]]:
        """(parameter, gradient), each in one piece on the CPU."""
        return [(name, self._whole(gradient_of(parameter))) for name, parameter in self.trained().items()]

    def own_loss(self) -> float:
        """This rank's sum of losses of the compared batch / denominator, where an iteration has recorded it; else NaN."""
        return self.loss.value if self.works[0].count else 0.0

    def parameters(self) -> list[tuple[str, Tensor]]:
        """(name, parameter), each in one piece on the CPU."""
        return [(name, self._whole(parameter.detach())) for name, parameter in self.trained().items()]

    def _whole(self, tensor: Tensor) -> Tensor:
        return self.exchange.whole(tensor).cpu().contiguous()


@dataclass(frozen=True)
class Builder:
    """Makes rigs of a case."""

    cut: Cut
    world: World
    usage: Usage

    @property
    def parts(self) -> Parts:
        """Of the case."""
        return self.cut.parts

    def build(self, batches: int, scale: float | None = None) -> Rig:
        """A fresh model, and what runs on so many batches, the loss scaled by `scale` where it is. Every rank calls alike."""
        parts = self.parts
        model = self._model()
        exchange = parts.aggregation.begin(parts.fault.model(model), self._fabric())
        scaler = self._scaler(scale)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        around_pass = parts.fault.passes(trained)
        works = [replace(self._local_work(exchange, scaler, lag), around_pass=around_pass) for lag in range(batches)]
        loss = LossRecord(scaler)
        works[0] = replace(works[0], note=loss.note)
        after = self._after_backward(trained, exchange, scaler)
        return Rig(model, exchange, works, [[*self._local_phases(work, exchange), *after] for work in works], scaler, loss)

    def _scaler(self, scale: float | None) -> GradScaler | None:
        scaler = self.parts.precision.scaler(self.world.device, scale)
        if scaler is not None:
            scaler.scale(torch.zeros((), device=self.world.device))  # it is set up by its first use, which a rank may not have
        return scaler

    def _model(self) -> nn.Module:
        parts, world = self.parts, self.world
        model = self.cut.material.fresh_model(world.device, parts.precision.parameter_dtype)
        model = parts.batchnorm.prepare(model, world.measured)
        adapt_model(model, parts.precision, world.device)
        parts.execution.prepare(model)
        return model

    def _fabric(self) -> Fabric:
        world = self.world
        sync = self.parts.sync
        issue = Issue(asynchronous=sync.asynchronous, after_each=sync.after_each(world.device))
        return Fabric(world.measured, world.ranks_per_node, world.subgroups, issue, self.usage.some_unused)

    def _local_work(self, exchange: Exchange, scaler: GradScaler | None, lag: int) -> LocalWork:
        parts, cut, world = self.parts, self.cut, self.world
        rank, material, precision = world.rank, cut.material, parts.precision
        own = cut.entering(lag)[rank]
        batch = material.batches[lag][torch.tensor(own, dtype=torch.long)].to(world.device, precision.parameter_dtype)
        criterion = material.fresh_criterion(world.device, precision.parameter_dtype)
        return LocalWork(
            model=exchange.model,
            criterion=adapt_losses(criterion, precision, world.device, scaler),
            batch=replace(batch, inputs=parts.fault.inputs(rank, batch.inputs)),
            terms=tuple(material.batch_terms[lag][index] for index in own),
            denominator=parts.fault.denominator(cut.denominators(lag)[rank], cut.divisor, world.size),
            accumulating=exchange.accumulating,
            in_backward=parts.aggregation.in_backward,
            needs_own_forward=parts.aggregation.needs_own_forward,
        )

    def _local_phases(self, work: LocalWork, exchange: Exchange) -> Phases:
        """A rank on which nothing counts contributes zeros; it passes through the model where others would wait for it."""
        phases = self.parts.reduction.phases(work)
        if not work.count:
            first = partial(self._pass_idly, work, exchange) if self.parts.aggregation.needs_a_pass else _nothing
            phases = [(name, _nothing if place else first) for place, (name, _) in enumerate(phases)]
        if not self.parts.aggregation.in_backward:
            return phases
        *others, (name, last) = phases
        return [*others, (name, partial(_one_after_the_other, last, exchange.backward_ended))]

    def _pass_idly(self, work: LocalWork, exchange: Exchange) -> None:
        batch = idle_batch(self.cut.material).to(self.world.device, self.parts.precision.parameter_dtype)
        (work.criterion.sum(exchange.model(*batch.inputs), batch.target) * 0).backward()

    def _after_backward(self, trained: list[nn.Parameter], exchange: Exchange, scaler: GradScaler | None) -> Phases:
        parts, group, device = self.parts, self.world.measured, self.world.device
        aggregate = partial(self._aggregate, trained, exchange, parts.fault.contribution(self.world.rank))
        then = [
            ("sync", parts.sync.before_aggregate(group, device)),
            ("aggregate", aggregate if self.cut.spans_ranks else None),
            ("sync", parts.sync.after_aggregate(group, device)),
            ("unscale", _unscaling(scaler, trained) if scaler else None),
            ("clip", parts.clip.clipping(trained)),
        ]
        return [(name, call) for name, call in then if call]

    def _aggregate(self, trained: list[nn.Parameter], exchange: Exchange, contribute: Summing) -> None:
        gradients, fault, averages = [gradient_of(one) for one in trained], self.parts.fault, self.parts.aggregation.averages
        contribute(gradients)
        # An exchange in backward has sent them already; every other strategy gets contiguous tensors.
        with nullcontext(gradients) if self.parts.aggregation.in_backward else collectives.dense(gradients) as handed:
            fault.total(self._summing(exchange), handed, self.world.measured, self.world.control.meet)
        divisor = fault.divisor(1 if averages else self.cut.divisor, self.world.size)
        if divisor != 1:
            torch._foreach_div_(gradients, divisor)

    def _summing(self, exchange: Exchange) -> Summing:
        dtype = self.parts.communication.dtype
        return exchange.finish if dtype is None else partial(_cast_and_sum, exchange, dtype)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """A parameter that took no part still takes part in the collective, or the other ranks would wait for it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    check_dense(parameter.grad)
    return parameter.grad


def _cast_and_sum(exchange: Exchange, dtype: torch.dtype, gradients: list[Tensor]) -> None:
    sent = [gradient.to(dtype) for gradient in gradients]
    exchange.finish(sent)
    torch._foreach_copy_(gradients, sent)


def _unscaling(scaler: GradScaler, trained: list[nn.Parameter]) -> Callable[[], None]:
    """As a training loop does before it would step, but for the step."""
    holder = torch.optim.SGD(trained, lr=0.0)

    def unscale() -> None:
        for parameter in trained:
            gradient_of(parameter)  # the scaler asks for one gradient at least
        scaler.unscale_(holder)
        scaler.update()

    return unscale


def _one_after_the_other(first: Callable[[], None], then: Callable[[], None]) -> None:
    first()
    then()


def _nothing() -> None:
    """The phase of a rank that has nothing to do in it."""
