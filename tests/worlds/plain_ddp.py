"""Gradients of options beside the gradient of a plain script with DistributedDataParallel."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.numerics.discrepancy import compare_all
from harness.rank.material import Material, prepare
from harness.rank.process_group import World
from harness.rank.trial import Trial
from harness.schema.case import AXES
from tests.options import make, parts_of

SIZE = 48
AGGREGATIONS = ("ddp", "all_reduce", "flat")
_MEBIBYTE = 2**20


def plain(material: Material, world: World) -> list[tuple[str, Tensor]]:
    """As every tutorial has it: each rank's shard, the mean loss, backward."""
    size = SIZE // world.size
    batch = material.batch[slice(world.rank * size, (world.rank + 1) * size)]
    model = DistributedDataParallel(material.fresh_model(world.device, torch.float32), process_group=world.measured)
    for _ in range(2):
        model.zero_grad()
        nn.CrossEntropyLoss()(model(*batch.inputs), batch.target).backward()
    return [(name, parameter.grad) for name, parameter in model.module.named_parameters()]


def in_gloo_order(ranks: list[Tensor]) -> Tensor:
    """The sum of flat float32 tensors, one a rank, added as gloo's ring does (NUMERICS: gloo/allreduce.cc)."""
    size, (elements,), width = len(ranks), ranks[0].shape, ranks[0].itemsize
    segments = _up(max(-(-elements * width // _MEBIBYTE), 2 * size), size)
    chunk = _up(-(-elements * width // segments), width) // width * (segments // size)
    total = torch.empty_like(ranks[0])
    for place in range(size):
        part = slice(min(place * chunk, elements), min((place + 1) * chunk, elements))
        total[part] = ranks[place - 1][part]
        for step in range(2, size + 1):
            total[part] += ranks[(place - step) % size][part]
    return total


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def replayed(own: list[Tensor], aggregation: str, world: World) -> Tensor:
    """The mean of the ranks' own gradients, as flat, in the order that the aggregation's all-reduces take."""
    messages = own if aggregation == "all_reduce" else [torch.cat([tensor.flatten() for tensor in own])]
    sums = [in_gloo_order(world.control.all_gather(message.flatten().contiguous())) for message in messages]
    return torch.cat(sums) / world.size


def beside_a_script(world: World) -> dict[str, dict[str, tuple[float, bool, bool]]]:
    """Measure the second iteration of each workload under each of AGGREGATIONS.

    Return {workload: {aggregation: [relative L2 from the script's gradient, whether all bits are equal, whether the bits are
    those of the ranks' own gradients summed in gloo's order]}}.
    """
    options = {axis: make(axis) for axis in AXES}
    found: dict[str, dict[str, tuple[float, bool, bool]]] = {}
    for name in ("mlp_digits", "cnn_digits", "transformer_topics"):
        material = prepare(options["workload"][name], name, 0, SIZE)
        gradients = {}
        for aggregation in ("local", *AGGREGATIONS):
            chosen = {"reduction": "mean", "normalization": "rank_mean", "aggregation": aggregation, "precision": "fp32"}
            trial = Trial(parts_of(options, material.workload, **chosen), material, world, asked_warm_up=1, measured=1)
            gradients[aggregation] = trial.measure(enter=lambda phase: None).gradient
        own, script = [gradient for _, gradient in gradients["local"]], plain(material, world)
        found[name] = {}
        for aggregation in AGGREGATIONS:
            apart, _ = compare_all(gradients[aggregation], script)
            bits = torch.cat([gradient.flatten() for _, gradient in gradients[aggregation]])
            told = torch.equal(bits, replayed(own, aggregation, world))
            flags = world.control.all_gather(torch.tensor([apart.relative_l2, apart.bitwise_equal, told], dtype=torch.float64))
            found[name][aggregation] = (float(flags[0][0]), all(bool(f[1]) for f in flags), all(bool(f[2]) for f in flags))
    return found
