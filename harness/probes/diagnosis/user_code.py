"""A verdict on a training step of anyone's own making, in a script of anyone's own."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.probes.control import Control, PeerFailedError
from harness.probes.diagnosis.batches import each_tensor, in_float64, length_of, picked, runs, unless_refused
from harness.probes.diagnosis.explain import Explanation, Seen, explain
from harness.probes.diagnosis.facts import Facts
from harness.probes.diagnosis.floor import PERMUTATIONS, Local
from harness.probes.diagnosis.products import projected, summed_over_ranks

Loss = Callable[[nn.Module, Any], tuple[Tensor, float]]
"""(model, batch) to the batch's losses, [samples, ...] or their sum, and to how many terms count in it."""
_SAMPLES = 512
"""Samples of all ranks that may have gradients of their own."""
_SAMPLE_BYTES = 1 << 28
"""What those of one rank may take in memory."""
_COUPLED = 1e-9
"""Two float64 gradients of one function are equal to about 1e-15."""


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
    step: leaves the aggregated gradient in `.grad`; called warm_up + 2 times, each time after `.grad` has been cleared. The
    last two must leave the same bits. DistributedDataParallel builds its buckets anew in its second iteration.
    previous: this rank's batch of the iteration before, where staleness is to be sought.
    precision: the coarsest dtype that the step computes or sends in, where that is not the parameters'.
    trained: whose `.grad` the step leaves where that is not `model` (FSDP: the sharded one, with the same parameters).

    Raises ValueError where the model has no gradient, or draws numbers in its forward (dropout: audit it with p=0, or in eval
    mode); RuntimeError where another rank raised; and whatever `loss` and `step` raise.
    """
    plain = _unwrapped(model)
    for _ in range(warm_up):
        _after(step, trained or model)
    value = _after(step, trained or model)
    again = _after(step, trained or model)
    repeats = torch.equal(value.view(torch.uint8), again.view(torch.uint8))  # NaN is equal to itself here
    batches = [batch] if previous is None else [batch, previous]
    dtype = precision or max(_dtypes(plain), key=lambda kind: torch.finfo(kind).eps)
    sizes = [parameter.numel() for parameter in _parameters(plain)]
    with _control() as control, _failing_together(control):
        witness = _Loop(control, plain, loss, batches, accumulation_steps)
        return explain(witness, Seen(value, repeats, witness.local(), sizes, coarsest=dtype))


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


def _parameters(model: nn.Module) -> list[nn.Parameter]:
    found = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not found:
        raise ValueError("the model has no parameter that gets a gradient")
    return found


def _dtypes(model: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in _parameters(model)}


def _after(step: Callable[[], object], model: nn.Module) -> Tensor:
    """The gradient that a step leaves, flat and on the CPU; zeros where there is none."""
    model.zero_grad(set_to_none=True)
    step()
    return _flat([_whole(torch.zeros_like(one) if one.grad is None else one.grad) for one in _parameters(_unwrapped(model))])


def _whole(gradient: Tensor) -> Tensor:
    """A DTensor in one piece."""
    gathered: Tensor = getattr(gradient, "full_tensor", lambda: gradient)()
    return gathered


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])


@dataclass
class _Loop:
    """See diagnosis.witness.Witness: a model, a loss and a batch on each rank."""

    control: Control
    model: nn.Module
    loss: Loss
    batches: Sequence[Any]
    accumulation_steps: int
    _kept: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._exact = copy.deepcopy(self.model).double()
        if not torch.equal(self.summed(), self._gradient(self._exact, self.batches[0])):
            raise ValueError("the model draws numbers in its forward: no two gradients of it are equal")
        terms = [self._shared(self._terms(batch)) for batch in self.batches]
        passes = [runs(len(own), self.accumulation_steps) for own in terms[0]]
        self.facts = Facts(terms, passes, iteration=len(self.batches), carries=0.0)

    def _terms(self, batch: Any) -> list[float]:
        """What each sample counts; of a batch whose samples cannot be told apart, all of them together."""
        if not length_of(batch):
            return []
        count = self._count(batch)
        if length_of(batch) > _SAMPLES:
            return [count]
        own = unless_refused(lambda: [self._count(picked(batch, torch.tensor([at]))) for at in range(length_of(batch))])
        return own if own and abs(sum(own) - count) <= 1e-9 * abs(count) else [count]

    @torch.no_grad()
    def _count(self, batch: Any) -> float:
        model = copy.deepcopy(self._exact).eval()  # a batch of one is too few for some normalizations
        return float(self.loss(model, each_tensor(batch, in_float64))[1])

    def _shared(self, own: list[float]) -> list[list[float]]:
        self.control.meet()
        most = torch.tensor(len(own))
        lengths = [int(length) for length in self.control.all_gather(most)]
        padded = torch.zeros(max(lengths), dtype=torch.float64)
        padded[: len(own)] = torch.tensor(own, dtype=torch.float64)
        return [row[:length].tolist() for row, length in zip(self.control.all_gather(padded), lengths, strict=True)]

    def local(self) -> Local:
        """This rank's part of the right gradient, as the model's own kernels make it."""
        total = self.facts.total or 1.0
        return Local(
            gradient=self._gradient(self.model, self.batches[0]),
            share=1 / total,
            permuted=self._permuted(),
            contributions=self._signed(),
            contributed=1 / total,
            exact=self.summed(),
            samples=length_of(self.batches[0]),
        )

    def _permuted(self) -> Iterator[Sequence[Tensor]]:
        """None where a sample's place in the batch matters: there a permutation is no null experiment."""
        orders = [
            torch.randperm(length_of(self.batches[0]), generator=torch.Generator().manual_seed(n)) for n in range(PERMUTATIONS)
        ]
        own = self.summed()
        if projected(self._gradient(self._exact, picked(self.batches[0], orders[0])), own)[1] > _COUPLED * float(own.norm()):
            return
        for order in orders:
            yield self._gradient(self.model, picked(self.batches[0], order)).split([p.numel() for p in _parameters(self.model)])

    def _signed(self) -> Tensor:
        """Of half the samples less the other half: as large as gradients are that do not know of each other."""
        half = torch.randint(0, 2, (length_of(self.batches[0]),), generator=torch.Generator().manual_seed(0)).bool()
        part = picked(self.batches[0], half.nonzero().flatten())
        found = unless_refused(lambda: self._gradient(self._exact, part))
        return self.summed() if found is None else self.summed() - 2 * found

    def _gradient(self, model: nn.Module, batch: Any) -> Tensor:
        """Of the summed loss, on a copy: statistics that a forward keeps are the caller's."""
        model = copy.deepcopy(model)
        exact = next(model.parameters()).dtype == torch.float64
        trained = _parameters(model)
        if not length_of(batch):
            return _flat([torch.zeros_like(parameter) for parameter in trained])
        losses, _ = self.loss(model, each_tensor(batch, in_float64) if exact else batch)
        return _flat(torch.autograd.grad(losses.sum(), trained, allow_unused=True, materialize_grads=True))

    def right(self) -> Tensor | None:
        """See Witness."""
        total = self.facts.total or 1.0
        found = self.kept("right", lambda: summed_over_ranks(self.control, self.summed(), 1 / total))
        return found if self.control.rank == 0 else None

    def summed(self, lag: int = 0) -> Tensor:
        """See Witness."""
        return self.kept(f"summed.{lag}", lambda: self._gradient(self._exact, self.batches[lag]))

    def samples(self) -> Sequence[Tensor]:
        """See Witness."""
        if "samples" not in self._kept:
            rows = bool(length_of(self.batches[0])) and self._in_rows()
            self._kept["samples"] = self._together() if rows else self._apart()
        return list(self._kept["samples"])

    def _in_rows(self) -> bool:
        """Whether the loss tells samples apart."""
        with torch.no_grad():
            losses, _ = self.loss(copy.deepcopy(self._exact), each_tensor(self.batches[0], in_float64))
        return losses.dim() > 0 and len(losses) == length_of(self.batches[0])

    def _together(self) -> Tensor:
        """Of each sample's loss in the batch that it is in: [samples, elements]."""
        model = copy.deepcopy(self._exact)
        losses, _ = self.loss(model, each_tensor(self.batches[0], in_float64))
        trained, each = _parameters(model), losses.reshape(len(losses), -1).sum(1)
        made = [torch.autograd.grad(one, trained, retain_graph=True, allow_unused=True, materialize_grads=True) for one in each]
        return torch.stack([_flat(gradient) for gradient in made])

    def _apart(self) -> Tensor:
        """Of every sample in a batch of its own: [samples, elements]."""
        places = range(length_of(self.batches[0]))
        made = [self._gradient(self._exact, picked(self.batches[0], torch.tensor([place]))) for place in places]
        return torch.stack(made) if made else torch.zeros(0, len(self.summed()))

    def without(self, sample: int) -> Tensor:
        """See Witness."""
        left = torch.tensor([place for place in range(length_of(self.batches[0])) if place != sample], dtype=torch.long)
        return self._gradient(self._exact, picked(self.batches[0], left))

    def apart(self) -> Tensor:
        """See Witness."""
        return self._apart().sum(0)

    def kept(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """See Witness."""
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def blank(self, elements: int) -> Tensor:
        """See Witness."""
        return torch.empty(elements, dtype=torch.float64)

    def sample_limit(self) -> int:
        """See Witness: none where samples cannot be told apart, or where each depends on the others."""
        return 0 if self.control.any(not self._separable()) else _SAMPLES

    def _separable(self) -> bool:
        """Whether the samples' gradients can be had, and add up to the batch's."""
        own = self.facts.terms[0][self.control.rank]
        if len(own) != length_of(self.batches[0]) or 8 * len(own) * len(self.summed()) > _SAMPLE_BYTES:
            return False
        parts = unless_refused(self.samples)
        if not parts:
            return parts is not None
        return projected(sum(parts[1:], parts[0]), self.summed())[1] <= _COUPLED * float(self.summed().norm())
