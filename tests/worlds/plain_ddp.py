"""A torchrun world: what the option `ddp` leaves in `.grad`, and what a plain script with DistributedDataParallel leaves.

    torchrun --nproc-per-node=W -m tests.worlds.plain_ddp OUT.json

Rank 0 writes {workload: whether every rank's gradients are equal bit for bit}; both are those of the second iteration.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.rank.material import Material, prepare
from harness.rank.process_group import World, open_store
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.options import CONFIG, make, parts_of

SIZE = 48


def plain(material: Material, world: World) -> list[Tensor]:
    """As every tutorial has it: each rank's shard, the mean loss, backward."""
    size = SIZE // world.size
    batch = material.batch[slice(world.rank * size, (world.rank + 1) * size)]
    model = DistributedDataParallel(material.fresh_model(world.device, torch.float32), process_group=world.measured)
    for _ in range(2):
        model.zero_grad()
        nn.CrossEntropyLoss()(model(*batch.inputs), batch.target).backward()
    return [parameter.grad for parameter in model.parameters()]


def main(out: Path) -> None:
    torch.set_num_threads(1)
    world = World.open(CONFIG, *open_store())
    options = {axis: make(axis) for axis in AXES}
    equal = {}
    for name in ("mlp_digits", "cnn_digits", "transformer_topics"):
        chosen = {"reduction": "mean", "normalization": "rank_mean", "aggregation": "ddp", "precision": "fp32"}
        parts = parts_of(options, options["workload"][name], **chosen)
        material = prepare(parts.workload, name, 0, SIZE)
        measured = Trial(parts, material, world, asked_warm_up=1, measured=1).measure(enter=lambda phase: None)
        ours = [gradient for _, gradient in measured.gradient]
        same = all(torch.equal(one, other) for one, other in zip(ours, plain(material, world), strict=True))
        equal[name] = all(bool(flag) for flag in world.control.all_gather(torch.tensor(same)))
    if world.rank == 0:
        out.write_text(json.dumps(equal))
    world.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
