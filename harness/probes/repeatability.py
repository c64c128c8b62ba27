"""The same gradient again: how many bit patterns, how far apart, and by what cause."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.probes import rounds
from harness.probes.base import Machine, Probe, Question, Subject
from harness.probes.bits import Gradient, digest, patterns_of
from harness.probes.descent import drift
from harness.schema.parameters import NotEmpty, Range, Several
from harness.schema.record import Observation
from harness.tensors import collectives

T = TypeVar("T")
Threads = Annotated[int, Range(1, 1024)]
TIMED_ROUNDS = 20


class RepeatabilityProbe(Probe):
    """For each workload, in float32, the gradient of the mean loss over the whole batch.

    runs: in one process, and of each of the ways that change nothing. orders: permutations of the batch. threads: counts of CPU
    threads, which are the rank's again afterwards.
    """

    def __init__(
        self,
        runs: Several = 1000,
        orders: Several = 50,
        threads: Annotated[Sequence[Threads], NotEmpty()] = (1, 2, 4),
    ) -> None:
        self._runs, self._orders, self._threads = runs, orders, tuple(threads)

    def questions(self, machine: Machine) -> list[Question]:
        alone = None if machine.size > 1 else "one rank: there is no other process"
        ways: list[tuple[str, Callable[[Machine, Subject], Iterator[Observation]], str | None]] = [
            ("runs", self._again, None),
            ("processes", _processes, alone),
            ("threads", self._across_threads, None),
            ("batch orders", self._across_orders, None),
            ("dropout", self._dropout, None),
            ("determinism", self._deterministic, _no_determinism(machine)),
        ]
        return [
            Question(f"{subject.name}: {what}", partial(ask, machine, subject), unsupported)
            for subject in machine.subjects
            for what, ask, unsupported in ways
        ]

    def _again(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        model = subject.model(torch.float32)
        yield from patterns_of(subject.gradient(model) for _ in range(self._runs)).observations("in one process")
        yield from drift(machine, subject, dict.fromkeys(("a run", "again"), partial(_backward, subject)))

    def _across_threads(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        model = subject.model(torch.float32)

        def under(count: int) -> Gradient:
            with _threads(count):
                return subject.gradient(model)

        yield from patterns_of(map(under, self._threads)).observations("thread counts")
        ways = {f"threads={count}": partial(_backward, subject, within=partial(_threads, count)) for count in self._threads}
        yield from drift(machine, subject, ways)

    def _across_orders(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        model, generator = subject.model(torch.float32), torch.Generator().manual_seed(machine.seed)
        orders = [torch.randperm(subject.samples, generator=generator) for _ in range(self._orders)]
        yield from patterns_of(subject.gradient(model, order) for order in orders).observations("batch orders")
        yield from drift(machine, subject, {f"order {i}": partial(_backward, subject, order=orders[i]) for i in range(2)})

    def _dropout(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        """Random numbers in the model: the one cause that a seed takes away."""
        model = subject.model(torch.float32)
        model.register_forward_hook(lambda module, inputs, output: functional.dropout(output, 0.1))
        unseeded = replace(subject, seed=None)
        free = patterns_of(unseeded.gradient(model) for _ in range(self._orders))
        seeded = patterns_of(subject.gradient(model) for _ in range(self._orders))
        yield from free.observations("dropout, not seeded")
        yield from seeded.observations("dropout, seeded")

    def _deterministic(self, machine: Machine, subject: Subject) -> Iterator[Observation]:
        model = subject.model(torch.float32)

        def deterministic() -> Gradient:
            with _deterministic():
                return subject.gradient(model)

        free = patterns_of(subject.gradient(model) for _ in range(self._orders))
        yield from free.observations("default algorithms")
        try:
            held = patterns_of(deterministic() for _ in range(self._orders))
        except RuntimeError as error:
            if "deterministic" not in str(error):  # else an operation has no deterministic implementation
                raise
            yield Observation("deterministic algorithms", "raises", 1.0, str(error).splitlines()[0])
            return
        yield from held.observations("deterministic algorithms")
        calls: dict[str, Callable[[], object]] = {
            "default algorithms": partial(subject.gradient, model),
            "deterministic algorithms": deterministic,
        }
        yield from rounds.seconds(calls, TIMED_ROUNDS, machine.device)


def _processes(machine: Machine, subject: Subject) -> Iterator[Observation]:
    """Ranks are processes of their own."""
    own = torch.tensor(list(digest(subject.gradient(subject.model(torch.float32)))), dtype=torch.uint8).to(machine.device)
    everyone = collectives.all_gather(own, machine.group)
    yield Observation("across processes", "runs", machine.size)
    yield Observation("across processes", "distinct", len({bytes(theirs.tolist()) for theirs in everyone}))


def _no_determinism(machine: Machine) -> str | None:
    if machine.device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        return "cuBLAS is deterministic only with +env.CUBLAS_WORKSPACE_CONFIG=:4096:8"
    return None


def _backward(
    subject: Subject,
    model: nn.Module,
    order: Tensor | None = None,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    with within():
        subject.loss(model, order).backward()


def _threads(count: int) -> AbstractContextManager[None]:
    return _held(torch.get_num_threads, torch.set_num_threads, count)


def _deterministic() -> AbstractContextManager[None]:
    return _held(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True)


@contextmanager
def _held(read: Callable[[], T], write: Callable[[T], object], value: T) -> Iterator[None]:
    """A setting of torch at `value`; then as it was."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)
