"""A verdict on a training step of anyone's own making, in a script of anyone's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.probes.control import Control, PeerFailedError
from harness.probes.diagnosis.explain import PARAMETER, SHARPER, Explanation, Seen, explain
from harness.probes.diagnosis.loop_witness import LoopWitness, Loss, OwnPrecisionWitness
from harness.probes.diagnosis.own_precision import NATIVE, Precisions, Way, ways
from harness.probes.diagnosis.user_step import UserStep, parameters_of
from harness.schema.record import CANNOT_TELL, OF_WEIGHTS, PRECISION, UNEXPLAINED

_LOST = 0.5
"""Part of the gradient: where rounding makes more, no gradient in this precision is right."""
_NAMED = 5e-3
"""Part of the gradient: a smaller mistake of weights is not named below float32."""


def audit(
    model: nn.Module,
    loss: Loss,
    batch: Any,
    step: Callable[[], object],
    *,
    previous: Any = None,
    accumulation_steps: int = 1,
    warm_up: int = 2,
    precision: torch.dtype | None = None,
    trained: nn.Module | None = None,
) -> Explanation:
    """Why the gradient that `step` leaves is not the mean over all terms of all ranks' batches, or that it is.

    All ranks call alike, each with its own batch; without torch.distributed a single process is the world. The model's
    parameters must be equal on all ranks. Rank 0 decides, and all ranks get the verdict; `str()` of it is a sentence.

    model: as it is trained; out of DistributedDataParallel, its module is taken. It is copied, never changed; a copy in float64
    must fit into memory.
    loss: called with a copy of the model and a batch, or part of one; gives the losses and what they count (samples, tokens).
    The losses are each sample's, [samples, ...], or their sum, a scalar; where samples influence each other (BatchNorm), only
    the former can tell them apart. No autocast in it: it is what the step is held against.
    batch: a tensor, or a tuple, list or dict of tensors, with the samples along the first dimension.
    step: leaves the aggregated gradient in `.grad`, or hands it to an optimizer; called warm_up + 2 times, each time after
    `.grad` has been cleared. The last two must leave the same bits. DistributedDataParallel builds its buckets anew in its
    second iteration. Where an optimizer steps, the gradient is taken as its `step()` begins. Parameters, buffers and optimizers
    are restored after every call (a learning rate schedule and the scale of a GradScaler are not). Leave clipping out of it:
    a clip that bites is a factor.
    accumulation_steps: backward passes of a step, which see runs of neighbouring samples.
    previous: this rank's batch of the iteration before, where staleness is to be sought.
    warm_up: calls before these two; the first runs uncompiled and is watched for the dtypes that it computes and sends in.
    precision: the coarsest of these dtypes, where no call is watched (warm_up=0) or a custom kernel hides it.
    trained: whose `.grad` the step leaves where that is not `model` (FSDP: the sharded one, with the same parameters).

    The result states its `limit`: a factor of 1 + limit on the whole gradient would have been seen. The verdict is
    `cannot_tell` where that is 2 % or more, and where rounding would hide a mistake of the ranks' weights, as a mean of means.
    Each parameter is also held to its own floor.

    Raises ValueError where the model has no gradient, or draws numbers in its forward (dropout: audit it with p=0, or in eval
    mode); RuntimeError where another rank raised; and whatever `loss` and `step` raise.
    """
    plain = _unwrapped(model)
    used = UserStep(step, _unwrapped(trained or model))
    with _control() as control:
        # A rank whose step raises leaves at once: the others may wait for it in the step's own collectives.
        watched = used.watched() if warm_up else None
        for _ in range(warm_up - 1):
            used.gradient()
        value = used.gradient()
        repeats = torch.equal(value.view(torch.uint8), used.gradient().view(torch.uint8))  # NaN is equal to itself here
        with _failing_together(control):
            precisions = Precisions.of(control, watched, _dtypes(plain), value.dtype, precision)
            batches = [batch] if previous is None else [batch, previous]
            loop = LoopWitness(control, plain, loss, batches, accumulation_steps, watched.passes if watched else 0)
            way = loop.nearest(ways(precisions.computed, _dtypes(plain)), value)
            if way is NATIVE:
                precisions = precisions.without_computing(_dtypes(plain))
            found = _verdict(loop, way, precisions, value, repeats)
    return replace(found, statement=f"{found.statement}; {_RESTORED}") if used.updates else found


def _verdict(loop: LoopWitness, way: Way, precisions: Precisions, value: Tensor, repeats: bool) -> Explanation:
    named = [(name, parameter.numel()) for name, parameter in loop.model.named_parameters() if parameter.requires_grad]
    names, sizes = zip(*named, strict=True)
    seen = Seen(value, repeats, loop.local(way), sizes, precisions.coarsest, precisions.travels, names=names)
    found = explain(loop, seen)
    if way is NATIVE or found.verdict not in (PRECISION, CANNOT_TELL, UNEXPLAINED, *OF_WEIGHTS):
        return found
    own = OwnPrecisionWitness(loop.control, loop, way)
    return _sharper(found, explain(own, replace(seen, local=own.local(), reference=f"the sound gradient in {way}")))


def _sharper(found: Explanation, own: Explanation) -> Explanation:
    """Combine the verdict against float64 with the one against the sound gradient in the step's own precision.

    The step and that gradient share the rounding of the forward pass, so `own` sees smaller mistakes.
    """
    near = f"{own.distance:.2g} from the sound gradient in its own precision, where rounding makes {own.floor:.2g}; "
    near *= own.unexplained and own.cause != PARAMETER
    words = f"{found.distance:.2g} from the float64 reference; {near}{own.statement}"
    if own.clean and found.floor <= _LOST:
        return replace(found, verdict=PRECISION, cause=PRECISION, statement=words, advice=own.advice, limit=own.limit)
    if (own.verdict in OF_WEIGHTS and own.distance > _NAMED) or own.cause == PARAMETER:
        return replace(own, distance=found.distance, floor=found.floor, noises=found.noises, lengths=found.lengths)
    if own.clean:
        words = (
            f"{found.distance:.2g} from the float64 reference, where rounding alone makes {found.floor:.2g}; {own.statement}"
        )
    if own.clean or found.clean or found.verdict == CANNOT_TELL:
        return replace(found, verdict=CANNOT_TELL, cause=CANNOT_TELL, statement=words, advice=SHARPER, limit=own.limit)
    return found


_RESTORED = "the step also updates the parameters: the gradient is what its optimizer got, and the parameters were restored"


@contextmanager
def _control() -> Iterator[Control]:
    """A gloo group of its own: what is measured is not what measures."""
    if not dist.is_available() or not dist.is_initialized():
        yield Control(None, 0, 1)
        return
    group = dist.new_group(backend="gloo")
    try:
        yield Control(group, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group(group)


@contextmanager
def _failing_together(control: Control) -> Iterator[None]:
    """A rank that raises is not waited for: the others raise where they meet it next."""
    try:
        yield
        control.meet()
    except PeerFailedError as error:
        raise RuntimeError("the audit failed on another rank, which says why") from error
    except Exception:
        with suppress(PeerFailedError):
            control.meet(failed=True)
        raise


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in parameters_of(model)}
