"""The harness's step of `mean` + `all_reduce` against a bare hand-written loop, in one world of two ranks, alternating."""

import subprocess
import sys
from functools import partial
from time import perf_counter

import torch
import torch.distributed as dist

from harness.axes.workload.base import Workload
from harness.rank.clock import Stopwatch
from harness.rank.material import prepare
from harness.rank.process_group import World, open_store
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.bench.rounds import alternate, ratio
from tests.options import CONFIG, make, parts_of
from tests.running import ENVIRONMENT, ROOT, TORCHRUN

ROUNDS = {"mlp_digits": 80, "cnn_digits": 60, "transformer_topics": 20}
STEPS = 10
"""Steps a round; its time is their median, of the slowest rank."""


def main() -> None:
    command = (*TORCHRUN, "--nproc-per-node=2", "-m", "tests.bench.step")
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    sys.stdout.write(done.stdout)


def measure(rounds_of: dict[str, int]) -> None:
    torch.set_num_threads(1)
    world = World.open(CONFIG, *open_store())
    workloads = make("workload")
    for name, asked in rounds_of.items():
        workload = workloads[name]
        harness, bare = _harness_step(world, workload, name), _bare_step(world, workload, name)
        other = _bare_step(world, workload, name)
        for warm_up in (harness, bare, other):
            warm_up()
        rounds = alternate([harness, bare, other], asked)
        if world.rank == 0:
            print(
                f"step of mean + all_reduce on {name}, 2 ranks, {len(rounds)} rounds of {STEPS}: time relative to a bare loop"
            )
            print(f"  harness                      {ratio([(ours, by_hand) for ours, by_hand, _ in rounds])}")
            print(f"  another bare loop (A/A)      {ratio([(again, by_hand) for _, by_hand, again in rounds])}")
    world.close()


def _median_of_slowest(world: World, seconds: list[float]) -> float:
    ranks = torch.stack(world.control.all_gather(torch.tensor(seconds, dtype=torch.float64)))
    return float(ranks.amax(0).median())


def _harness_step(world: World, workload: Workload, name: str):
    options = {axis: make(axis) for axis in AXES if axis != "workload"}
    parts = parts_of(options, workload, reduction="mean", normalization="global_mean", precision="fp32")
    trial = Trial(parts, prepare(workload, name, 0, CONFIG.global_batch_size), world, asked_warm_up=0, measured=1)
    rig = trial._rig(1)
    stopwatch = Stopwatch(world.device, rig.names(), lambda phase: None)
    step = stopwatch.columns.index(("step", "host"))
    iterate = partial(trial._iterate, rig.model, partial(stopwatch.time, rig.phases[0]))
    return lambda: _median_of_slowest(world, [iterate()[step] for _ in range(STEPS)])


def _bare_step(world: World, workload: Workload, name: str):
    """What a user would write, with the same barrier outside of the time."""
    material = prepare(workload, name, 0, CONFIG.global_batch_size)
    model, device = material.fresh_model(world.device, torch.float32), world.device
    loss_function = workload.build_criterion().mean
    shard = torch.arange(len(material.batch)).tensor_split(world.size)[world.rank]
    batch = material.batch[shard].to(device, torch.float32)
    (inputs,), target = batch.inputs, batch.target
    share = sum(material.terms[int(index)] for index in shard) / sum(material.terms)

    def step() -> float:
        model.zero_grad()
        world.control.meet()
        start = perf_counter()
        loss = loss_function(model(inputs), target) * share
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad, group=world.measured)
        return perf_counter() - start

    return lambda: _median_of_slowest(world, [step() for _ in range(STEPS)])


if __name__ == "__main__":
    measure(dict.fromkeys(ROUNDS, int(sys.argv[1])) if sys.argv[1:] else ROUNDS)
