"""Material: the parameters and the batches that all cases of a workload share."""

import copy
import hashlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from harness.axes.workload.base import Batch, Criterion, Workload, coupling, draw, fingerprint, seeded
from harness.probes.control import Control
from harness.rank.agreement import describe
from harness.rank.settings import restored
from harness.schema.refusal import RefusedError
from harness.schema.seeding import derive_seed
from harness.tensors.bits import bits

T = TypeVar("T")
_SAMPLES_TO_TRY = 4


@dataclass(frozen=True, eq=False)
class Material:
    """What a workload gives to all its cases, on the CPU, in the dtype in which the workload makes it. Equal only to itself."""

    workload: Workload
    name: str
    model: nn.Module
    batches: tuple[Batch, ...]
    """Global batches; every case's last iteration is on the first. The others are for what needs iterations to differ."""
    batch_terms: tuple[tuple[float, ...], ...]
    """What each sample of a batch counts: 1, or its tokens that count."""
    coupling: tuple[str, ...]
    """By what a sample's output depends on the batch that it is in; see workload.base."""
    data_sha256: str
    data_samples: int
    changed_settings: tuple[str, ...] = ()
    """Settings of the process that making model, loss and data changed, and that were put back."""

    @property
    def batch(self) -> Batch:
        """The batch that gradients are compared on."""
        return self.batches[0]

    @property
    def terms(self) -> tuple[float, ...]:
        """What each sample of `batch` counts."""
        return self.batch_terms[0]

    @property
    def trains(self) -> bool:
        """Whether any parameter gets a gradient."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    @property
    def sparse(self) -> tuple[str, ...]:
        """Names of the parameters whose gradients are sparse."""
        kinds = (nn.Embedding, nn.EmbeddingBag)
        found = ((name, module) for name, module in self.model.named_modules() if isinstance(module, kinds) and module.sparse)
        return tuple(f"{name}.weight".lstrip(".") for name, module in found if module.weight.requires_grad)

    def initialized(self, seed: int) -> nn.Module:
        """The model with the parameters that another seed gives."""
        return _materialized(self.workload.build_model(seed), self.batch, seed)

    @property
    def strided(self) -> tuple[str, ...]:
        """Names of the parameters that are not contiguous in a copy of the model, which keeps strides without gaps."""
        named = self.model.named_parameters()
        return tuple(name for name, one in named if not torch.empty_like(one, device="meta").is_contiguous())

    def fresh_model(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return a copy of the initial model. The device casts it, so that float64 is not what is sent there."""
        return copy.deepcopy(self.model).to(device).to(dtype)

    def fresh_criterion(self, device: torch.device, dtype: torch.dtype) -> Criterion:
        """A loss of its own, for the case may move it."""
        return self.workload.build_criterion().to(device, dtype)


def step_seed(seed: int, name: str, rank: int) -> int:
    """What a rank's model draws in a step of the workload `name` comes from it; equal in all iterations."""
    return derive_seed(seed, name, "step", str(rank))


def prepare(workload: Workload, name: str, seed: int, global_batch_size: int, batches: int = 1) -> Material:
    """Build what the seed says, with so many batches. Raises RefusedError when the workload's own code cannot serve it."""
    changed: list[str] = []
    try:
        model = _kept(changed, lambda: workload.build_model(derive_seed(seed, name, "parameters")))
        data = _kept(changed, lambda: workload.load_data(derive_seed(seed, name, "data")))
        drawn = _draw_batches(data, workload.samples or global_batch_size, derive_seed(seed, name, "batch"), batches)
        criterion = _kept(changed, workload.build_criterion)
        model = _kept(changed, lambda: _materialized(model, drawn[0], derive_seed(seed, name, "parameters")))
        _check_dtypes(model)
        terms = _kept(changed, lambda: [criterion.terms(batch.target) for batch in drawn])
        tried = drawn[0][terms[0].argsort(descending=True)[:_SAMPLES_TO_TRY]]
        _kept([], lambda: _check_criterion(model, criterion, tried))  # a forward, and each case notes what its own changes
    except Exception as error:  # the user's model, loss and data may raise anything: it is a refusal, told with its place
        traceback.print_exc()
        raise RefusedError(f"workload.{name}: {describe(error)}") from error
    if not all(of_batch.sum() > 0 for of_batch in terms):
        raise RefusedError(f"workload.{name}: no target of the batch counts in its loss")
    counted = tuple(tuple(of_batch.tolist()) for of_batch in terms)
    return Material(
        workload, name, model, drawn, counted, coupling(model), fingerprint(data), len(data), tuple(dict.fromkeys(changed))
    )


def _materialized(model: nn.Module, batch: Batch, seed: int) -> nn.Module:
    """Give lazy modules (torch.nn.LazyLinear) their parameters, from `seed`, by one forward in eval mode; then as before."""
    if not _uninitialized(model):
        return model
    modes = {module: module.training for module in model.modules()}
    with seeded(seed), torch.no_grad():
        model.eval()(*batch[slice(_SAMPLES_TO_TRY)].to(torch.device("cpu"), torch.get_default_dtype()).inputs)
    for module, training in modes.items():
        module.training = training
    if left := _uninitialized(model):
        raise ValueError(f"{', '.join(left)}: still uninitialized after a forward; try a module that is not lazy")
    return model


def _uninitialized(model: nn.Module) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]


def _check_dtypes(model: nn.Module) -> None:
    """A model is cast to each case's precision, in which complex numbers would lose their imaginary parts without an error."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{name} is {kind}; accepted: real parameters and buffers; try torch.view_as_real of it")


def _kept(changed: list[str], call: Callable[[], T]) -> T:
    """Call the user's code; put back the settings of the process that it changes, and note them."""
    with restored(changed):
        return call()


def _draw_batches(data: Batch, size: int, seed: int, count: int) -> tuple[Batch, ...]:
    """The first is the same whatever `count` is."""
    return tuple(draw(data, size, derive_seed(seed, str(lag)) if lag else seed) for lag in range(count))


def check_equal_on_ranks(material: Material, control: Control) -> None:
    """Compare initial parameters, buffers and batch bit for bit over ranks. Raises RefusedError naming what differs."""
    named = {**dict(material.model.named_parameters()), **dict(material.model.named_buffers())}
    batches = [bytes.fromhex(fingerprint(batch)) for batch in material.batches]
    digests = [_digest(tensor.detach()) for tensor in named.values()] + batches
    rows = control.all_gather(torch.tensor([list(digest) for digest in digests], dtype=torch.uint8))
    for rank, row in enumerate(rows):
        unequal = (row != rows[0]).any(1).nonzero().flatten().tolist()
        if unequal:
            what = [*named, *("the batch" for _ in material.batches)][unequal[0]]
            raise RefusedError(
                f"workload.{material.name}: {what} of rank {rank} differs from rank 0's before anything ran; "
                "the model and the data must depend on torch's seed alone"
            )


def _check_criterion(model: nn.Module, criterion: Criterion, batch: Batch) -> None:
    """The three reductions must be what their names say, or every figure of the workload would be wrong."""
    device, dtype = torch.device("cpu"), torch.float64
    model, criterion, batch = copy.deepcopy(model).to(dtype), criterion.to(device, dtype), batch.to(device, dtype)
    with torch.no_grad():
        output = model(*batch.inputs)
        none, total, mean = (loss(output, batch.target) for loss in (criterion.none, criterion.sum, criterion.mean))
    if len(none.shape) == 0 or len(none) != len(batch):
        raise ValueError(f'reduction="none" gives shape {tuple(none.shape)}, expected {len(batch)} samples along the first')
    counted = criterion.terms(batch.target).sum()
    if counted > 0 and not torch.allclose(total, mean * counted, rtol=1e-9, equal_nan=True):
        raise ValueError(
            f'reduction="sum" is {float(total):g} and "mean" times its {float(counted):g} terms is {float(mean * counted):g}; '
            "a loss that counts otherwise has a method terms(target)"
        )


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(bits(tensor).numpy().data).digest()
