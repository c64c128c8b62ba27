"""Which parameters get a gradient: the answer is a material's own, however many came and went before it."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.axes.workload.base import Workload
from harness.probes.control import Control
from harness.rank.material import prepare
from harness.rank.rig import Cut
from harness.rank.usage import Usages
from harness.schema.case import AXES
from tests.options import make, parts_of


class OfTwo(nn.Module):
    """Two layers, of which one or both are used."""

    def __init__(self, *, both: bool) -> None:
        super().__init__()
        self.one, self.other, self.both = nn.Linear(2, 1), nn.Linear(2, 1), both

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.one(inputs) + self.other(inputs) if self.both else self.one(inputs)
        return out


def ones() -> tuple[Tensor, Tensor]:
    return torch.ones(4, 2), torch.ones(4, 1)


@pytest.fixture
def control() -> Iterator[Control]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Control(dist.GroupMember.WORLD, 0, 1)
    dist.destroy_process_group()


def test_a_material_is_not_taken_for_one_that_is_gone(control: Control) -> None:
    """CPython gives a new object the address, and so the id, of one that is gone: on some ranks, and on others not."""
    options = {axis: make(axis) for axis in AXES if axis != "workload"}
    usages = Usages(control, torch.device("cpu"))
    for both in [True, True, False, False] * 50:
        workload = Workload(model=partial(OfTwo, both=both), loss=partial(nn.MSELoss), data=ones)
        parts = parts_of(options, workload, reduction="mean", normalization="global_mean")
        cut = Cut(parts, prepare(workload, "of_two", 0, 4), world_size=1)
        assert usages.of(cut.material, cut).some_unused is not both
