"""Material: the parameters and the batches that all cases of a workload share."""

import copy
import hashlib
import traceback
from dataclasses import dataclass

import torch
from torch import nn

from harness.axes.workload.base import Batch, Criterion, Workload, coupling, draw, fingerprint
from harness.probes.control import Control
from harness.rank.agreement import describe
from harness.schema.refusal import RefusedError
from harness.schema.seeding import derive_seed

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

    def fresh_model(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A copy of the initial model."""
        return copy.deepcopy(self.model).to(device, dtype)

    def fresh_criterion(self, device: torch.device, dtype: torch.dtype) -> Criterion:
        """A loss of its own, for the case may move it."""
        return self.workload.build_criterion().to(device, dtype)


def step_seed(seed: int, name: str, rank: int) -> int:
    """What a rank's model draws in a step of the workload `name` comes from it; equal in all iterations."""
    return derive_seed(seed, name, "step", str(rank))


def prepare(workload: Workload, name: str, seed: int, global_batch_size: int, batches: int = 1) -> Material:
    """Build what the seed says, with so many batches. Raises RefusedError when the workload's own code cannot serve it."""
    try:
        model = workload.build_model(derive_seed(seed, name, "parameters"))
        data = workload.load_data(derive_seed(seed, name, "data"))
        drawn = _draw_batches(data, workload.samples or global_batch_size, derive_seed(seed, name, "batch"), batches)
        criterion = workload.build_criterion()
        terms = [criterion.terms(batch.target) for batch in drawn]
        _check_criterion(model, criterion, drawn[0][terms[0].argsort(descending=True)[:_SAMPLES_TO_TRY]])
    except Exception as error:  # the user's model, loss and data may raise anything: it is a refusal, told with its place
        traceback.print_exc()
        raise RefusedError(f"workload.{name}: {describe(error)}") from error
    if not all(of_batch.sum() > 0 for of_batch in terms):
        raise RefusedError(f"workload.{name}: no target of the batch counts in its loss")
    counted = tuple(tuple(of_batch.tolist()) for of_batch in terms)
    return Material(workload, name, model, drawn, counted, coupling(model), fingerprint(data), len(data))


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
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().data).digest()
