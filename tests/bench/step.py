"""The harness's step against a bare hand-written loop, in one world of two ranks, alternating.

`python -m tests.bench.step 20` makes that many rounds of each setting, at least 10.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.axes.workload.base import Workload
from harness.axes.workload.mlp_digits import MlpDigitsWorkload
from harness.rank.clock import Stopwatch
from harness.rank.material import Material, prepare
from harness.rank.process_group import World, open_store
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.bench.rounds import alternate, ratio
from tests.bench.world import median_of_slowest, print_of_world
from tests.options import CONFIG, make, parts_of

STEPS = 10
"""Steps a round; its time is their median, of the slowest rank."""


@dataclass(frozen=True)
class Setting:
    """What is stepped on, and how its gradient is aggregated."""

    workload: str
    aggregation: str
    rounds: int
    hidden: int = 0
    """Of a wide mlp; 0: the workload as it is shipped."""

    @property
    def title(self) -> str:
        """For a person."""
        return f"mean + {self.aggregation} on {self.workload}" + f", hidden={self.hidden}" * bool(self.hidden)

    def material(self) -> Material:
        """The model and its batch."""
        workload: Workload = MlpDigitsWorkload(self.hidden) if self.hidden else make("workload")[self.workload]
        return prepare(workload, self.workload, 0, CONFIG.global_batch_size)


SETTINGS = (
    Setting("mlp_digits", "all_reduce", rounds=80),
    Setting("cnn_digits", "all_reduce", rounds=60),
    Setting("transformer_topics", "all_reduce", rounds=20),
    Setting("mlp_digits", "ddp", rounds=20, hidden=2048),
)
"""The last one's step takes 20 ms and longer."""


def main(rounds: int = 0) -> None:
    """Measure in a world; 0 rounds: as many as each setting says."""
    print_of_world("tests.bench.step:measure", rounds)


def measure(rounds: int) -> None:
    """Measure on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    world = World.open(CONFIG, *open_store())
    for setting in SETTINGS:
        material = setting.material()
        harness = _harness_step(world, material, setting)
        bare, other = (_bare_step(world, material, setting) for _ in range(2))
        for warm_up in (harness, bare, other):
            warm_up()
        found = alternate([harness, bare, other], rounds or setting.rounds)
        if world.rank == 0:
            median = sorted(by_hand for _, by_hand, _ in found)[len(found) // 2]
            print(f"step of {setting.title}, 2 ranks, {len(found)} rounds of {STEPS}: time relative to a bare loop")
            print(f"  harness                      {ratio([(ours, by_hand) for ours, by_hand, _ in found])}")
            print(f"  another bare loop (A/A)      {ratio([(again, by_hand) for _, by_hand, again in found])}", end="")
            print(f"   median {median * 1e3:.1f} ms")
    world.close()


def _harness_step(world: World, material: Material, setting: Setting) -> Callable[[], float]:
    options = {axis: make(axis) for axis in AXES if axis != "workload"}
    chosen = {"reduction": "mean", "normalization": "global_mean", "precision": "fp32", "aggregation": setting.aggregation}
    trial = Trial(parts_of(options, material.workload, **chosen), material, world, asked_warm_up=0, measured=1)
    rig = trial._rig(1)
    stopwatch = Stopwatch(world.device, rig.names(), lambda phase: None)
    step = stopwatch.columns.index(("step", "host"))
    iterate = partial(trial._iterate, rig.model, partial(stopwatch.time, rig.phases[0]))
    return lambda: median_of_slowest(world, [iterate()[step] for _ in range(STEPS)])


def _bare_step(world: World, material: Material, setting: Setting) -> Callable[[], float]:
    """What a user would write, with the same barrier outside of the time."""
    model, device = material.fresh_model(world.device, torch.float32), world.device
    shard = torch.arange(len(material.batch)).tensor_split(world.size)[world.rank]
    batch = material.batch[shard].to(device, torch.float32)
    iterate = {"all_reduce": _all_reducing, "ddp": _replicated}[setting.aggregation](world, material, model, shard)

    def step() -> float:
        model.zero_grad()
        world.control.meet()
        start = perf_counter()
        iterate(*batch.inputs, batch.target)
        return perf_counter() - start

    return lambda: median_of_slowest(world, [step() for _ in range(STEPS)])


def _all_reducing(world: World, material: Material, model: nn.Module, shard: torch.Tensor) -> Callable[..., None]:
    loss_function = material.workload.build_criterion().mean
    share = sum(material.terms[int(index)] for index in shard) / sum(material.terms)

    def iterate(inputs: torch.Tensor, target: torch.Tensor) -> None:
        loss = loss_function(model(inputs), target) * share
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, group=world.measured)

    return iterate


def _replicated(world: World, material: Material, model: nn.Module, shard: torch.Tensor) -> Callable[..., None]:
    """As every tutorial has it."""
    replica, loss_function = DistributedDataParallel(model, process_group=world.measured), nn.CrossEntropyLoss()
    return lambda inputs, target: loss_function(replica(inputs), target).backward()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
