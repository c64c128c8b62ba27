"""Memory of a CUDA device as the allocator and NVML tell it, on stand-ins for both."""

import os
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.rank.environment.gpu import Gpu
from harness.rank.inquiry import machine_of
from harness.rank.loop import Loop
from harness.rank.losses import LossRecord
from harness.rank.memory import DeviceMemory, Meter
from harness.rank.process_group import World
from tests.options import CONFIG

GIB = 2**30
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Figures of torch's allocator, and of the device."""
    figures = {"allocated": 2 * GIB, "reserved": 5 * GIB, "peak": 7 * GIB, "free": 12 * GIB, "retries": 3}
    for name, key in (("memory_allocated", "allocated"), ("memory_reserved", "reserved"), ("max_memory_reserved", "peak")):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda device=None, key=key: figures[key])
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (figures["free"], 80 * GIB))
    monkeypatch.setattr("torch.cuda.memory_stats", lambda device: {"num_alloc_retries": figures["retries"]})
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: None)
    return figures


@pytest.mark.parametrize(("uuids", "share"), [(["a", "b", "c", "d"], 12), (["a", "a", "b", "a"], 4)])
def test_free_memory_is_shared_by_the_ranks_of_a_gpu_and_the_unused_cache_is_a_rank_s_own(
    uuids: list[str], share: int, allocator: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 GiB are left on the device; 3 GiB that the allocator holds and does not use are free as well."""
    monkeypatch.setattr("harness.rank.inquiry.gpu_uuid", lambda device: uuids[0])
    monkeypatch.setattr("torch.cuda.Event", lambda enable_timing: None)
    control = SimpleNamespace(all_gather_text=lambda own: uuids, all_gather=lambda own: [own], meet=None)
    world = SimpleNamespace(device=DEVICE, size=4, rank=0, backend="gloo", ranks_per_node=4, control=control)
    machine = machine_of(cast(World, world), CONFIG, [])
    assert machine.free_bytes() == (share + 3) * GIB


def test_the_allocator_s_retries_are_those_of_the_case(allocator: dict[str, int]) -> None:
    meter = Meter(DEVICE)
    allocator["retries"] += 2
    assert meter.on_device(7 * GIB) == DeviceMemory(7 * GIB, 2)
    assert Meter(torch.device("cpu")).on_device(0) is None


def test_the_most_that_was_reserved_outlives_the_resets_of_the_peak(
    allocator: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With twins the peak is reset in each iteration; the allocator may have returned its cache since."""
    monkeypatch.setattr("harness.rank.loop.peak_bytes", lambda device: 0)
    monkeypatch.setattr("harness.rank.loop.reset_peak", lambda device: allocator.update(peak=allocator["reserved"]))
    reserved = iter([6, 9, 5])

    def time(left: int, iterate: object) -> list[float]:
        allocator.update(peak=next(reserved) * GIB)
        return []

    rig = SimpleNamespace(model=None, phases=[[]], loss=LossRecord(None))
    pace = SimpleNamespace(begin=lambda: None, verdict=lambda made: "enough", left=lambda made: 0)
    watch = SimpleNamespace(columns=[("step", "host")], time=lambda phases: [0.0])
    twins = SimpleNamespace(time=time, columns=[])
    loop = Loop(DEVICE, cast(Any, rig), cast(Any, watch), cast(Any, pace), cast(Any, twins), lambda model, run: run())
    loop.run(0, 3)
    assert allocator["peak"] == 5 * GIB
    assert loop.reserved_bytes == 9 * GIB


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        ([(1, 9 * GIB), (0, 6 * GIB)], 6 * GIB),
        ([(0, 1 * GIB)], None),
        ([(0, None)], None),
        ([(1, 9 * GIB)], None),
        (None, None),
    ],
    ids=["own", "the pid of another namespace's process", "without bytes", "not listed", "not permitted"],
)
def test_bytes_of_this_process_are_nvml_s(
    listed: list[tuple[int, int]] | None, known: int | None, allocator: dict[str, int]
) -> None:
    class NotPermittedError(Exception):
        """NVML's error of that name."""

    def running(handle: object) -> list[SimpleNamespace]:
        if listed is None:
            raise NotPermittedError
        return [SimpleNamespace(pid=os.getpid() + other, usedGpuMemory=used) for other, used in listed]

    nvml: Any = SimpleNamespace(
        NVMLError=NotPermittedError, nvmlDeviceGetComputeRunningProcesses=running, nvmlSystemGetProcessName=lambda pid: "x"
    )
    assert Gpu(nvml, None).own_bytes() == known
