"""The main job on CUDA: NCCL, device events and synchronization, and ranks that share a GPU over gloo.

`REHEARSE=1 pytest -m gpu` runs the bodies on the CPU (tests/rehearsal.py).
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.probes.accesses import PinnedCopy, SideStream
from harness.rank.memory import available_bytes
from harness.rank.preflight import SHARING
from harness.report.frame import Run, load_run
from harness.report.staleness import reads
from harness.report.stories import tell
from harness.report.times import TRANSFER, times_of
from harness.schema.record import PREDICTED, REFERENCE
from harness.schema.run_dir import RunDir
from tests.harness.rank.test_failing import CASES, plant
from tests.options import AVAILABLE
from tests.rehearsal import DEVICE, REHEARSED, backend_of, few, on_cuda, smaller
from tests.running import ENVIRONMENT, HANG_S, launch

pytestmark = pytest.mark.gpu


def nccl_worlds(gpus: int) -> list[tuple[str, int]]:
    """NCCL on 2 ranks, on every larger power of two that there are GPUs for, and on all GPUs."""
    sizes = {2, gpus, *(2**power for power in range(1, gpus.bit_length()))}
    return [("nccl", size) for size in sorted(sizes) if size > 1]


SEVERAL = [("gloo", 2), *([] if REHEARSED else nccl_worlds(torch.cuda.device_count()))]
"""A rehearsal runs NCCL's bodies over gloo, where two ranks would run the same twice."""
several = pytest.mark.parametrize(("backend", "ranks"), SEVERAL)
NO_PROCESSES: dict[str, Any] = {"own_pid_seen": False, "others": []}
# What a rehearsal has less of.
SWEEP = [f"probe.collectives.{key}" for key in ("most_bytes=65536", "beside_bytes=4096", "iterations=3", "warm_up=1")]
STALENESS = [f"probe.staleness.{key}" for key in ("trials=10", "controls=10")]
MODES = ["workload=[mlp_digits,cnn_digits]", "reduction=[none,mean,per_sample_vmap,micro_batch]"]
DRIFT = ["drift.steps=2"]
STORIES = {
    "reduction_modes": ["workload.mlp_digits.samples=[48]"],
    "unequal_derivatives": [f"probe.repeatability.{key}" for key in ("runs=20", "orders=20")],
}
one_and_several = pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), *SEVERAL])


@one_and_several
def test_every_mode_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    check_gpus(backend, ranks)
    run = run_of(backend, ranks, tmp_path, "sync=[none,device,barrier]", "iterations=3", "precision=[fp32,fp64]", *few(MODES))
    skipped = run.cases[(run.cases.status == "skipped") & (run.cases.sync == "none")]
    if on_cuda("sync=device and sync=barrier skip what sync=none skips"):
        skipped = run.cases[run.cases.status == "skipped"]
    assert set(zip(skipped.workload, skipped.reduction, strict=True)) == {("cnn_digits", "per_sample_vmap")}
    assert {"host", "arrival"} <= set(run.samples["clock"])
    if on_cuda("samples have the device's clocks"):
        queued = {"cuda_queued"} if backend == "nccl" else set()
        assert set(run.samples["clock"]) == {"host", "cuda_event", "arrival"} | queued
    assert (run.cases[run.cases.status == "ok"].device == DEVICE).all()
    rows = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    rows = rows.merge(run.cases, on="case_id")
    assert (rows[(rows.precision == "fp64") & (rows.workload != "cnn_digits")].relative_l2 < 1e-12).all()
    assert (rows[(rows.precision == "fp32") & (rows.workload != "cnn_digits")].relative_l2 < 1e-6).all()
    assert (run.samples.query("phase == 'sync'").seconds > 0).all()


@several
def test_where_the_time_goes_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    """Every policy of waiting, the device's own arrivals, and the twins' events."""
    check_gpus(backend, ranks)
    run = run_of(
        *(backend, ranks, tmp_path, "workload=[mlp_digits]", "reduction=[mean]", "aggregation=[all_reduce,bucketed]"),
        f"sync=[{','.join(AVAILABLE['sync'])}]",
        *("exposed=true", "until.relative=0.9", "until.seconds=60"),
    )
    assert not (run.cases.status == "failed").any()
    if on_cuda("every policy of waiting applies"):
        assert set(run.cases.status) == {"ok"}
    assert run.cases.gradient_sha256.nunique() <= 2, "no policy changes a sum; the order of summation may, by aggregation"
    clock = "host" if REHEARSED else "cuda_event"
    for case_id in run.cases[run.cases.status == "ok"].case_id:
        times = times_of(run.raw_samples(case_id))
        assert times.clock == clock
        assert np.isfinite(times.phases[clock, TRANSFER]).all(), "it may be 0 or below within the error of the clocks"
        assert (times.phases[clock, "step_alone"] > 0).all()
        assert (times.phases[clock, "collective_alone"] > 0).all()


def test_a_small_step_is_timed_without_its_launches(tmp_path: Path) -> None:
    """Its length, and the number of holds that end early, depend on other work of the machine."""
    run = run_of("nccl", 1, tmp_path, "workload=[mlp_digits]", "reduction=[mean]", "iterations=20")
    times = times_of(run.raw_samples(run.cases.case_id[0]))
    if on_cuda("some holds last until the host has launched the step"):
        without = times.slowest["cuda_queued", "step"]
        assert len(without) == run.config.iterations
        assert (without[np.isfinite(without)] > 0).all()


@several
def test_the_sweep_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    check_gpus(backend, ranks)
    run = run_of(backend, ranks, tmp_path, "workload=[mlp_digits]", "reduction=[mean]", "probe=[collectives]", *few(SWEEP))
    assert "ok" in set(run.probes.status)
    assert not (run.probes.status == "failed").any(), "what arrives is right in every size, or skipped with its reason"
    in_a_row = {"cuda_back_to_back", "cuda_graph"} if backend == "nccl" else {"host_back_to_back"}
    assert "host" in set(run.collectives["clock"])
    if on_cuda("the sweep has the device's clocks"):
        assert set(run.collectives["clock"]) == {"host", "cuda_event"} | in_a_row


@one_and_several
def test_stale_reads_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    """Controls hold, and a read that does not wait is stale once what it should wait for is delayed."""
    check_gpus(backend, ranks)
    run = experiment("gradient_sums", backend, ranks, tmp_path, *few(STALENESS), *few(DRIFT))
    counted = reads(run.observations[run.observations.probe.astype(str) == "staleness"])
    safe = counted[counted.safe]
    assert (safe.stale + safe.torn == 0).all()
    delayed = counted[~counted.safe & counted.setting.str.startswith("delayed")].set_index("subject")
    if on_cuda("delayed reads on another stream are stale"):
        for access in (SideStream.name, PinnedCopy.name):
            assert delayed.stale[access] >= 0.9 * delayed.trials[access]


@pytest.mark.parametrize("name", ["reduction_modes", "unequal_derivatives"])
def test_stories_on_cuda(name: str, tmp_path: Path) -> None:
    run = experiment(name, "gloo", 2, tmp_path, "+env.CUBLAS_WORKSPACE_CONFIG=:4096:8", *few(STORIES[name]), *few(DRIFT))
    claims, *_ = tell(run)
    assert {"holds", "does not hold"} <= set(claims.rows.verdict)


def test_faults_on_cuda(tmp_path: Path) -> None:
    run = run_of(
        *("gloo", 2, tmp_path, "workload=[mlp_digits]", "reduction=[mean,none]", "iterations=2", "warm_up=1"),
        *("normalization=[global_mean,rank_mean]", "precision=[fp64]", f"fault=[{','.join(AVAILABLE['fault'])}]"),
    )
    rows = run.discrepancies[(run.discrepancies.against == PREDICTED) & (run.discrepancies.parameter == "")]
    assert (rows[rows["rank"] == 0].relative_l2 < 1e-12).all()


@one_and_several
def test_every_strategy_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    check_gpus(backend, ranks)
    run = experiment("aggregation", backend, ranks, tmp_path, "precision=[fp64]", "workload=[mlp_digits]", "sharding=[even]")
    rows = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    rows = rows.merge(run.cases, on="case_id")
    lossless = rows[~rows.aggregation.isin(["ddp_fp16", "ddp_bf16", "ddp_powersgd"])]
    assert (lossless.relative_l2 < 1e-12).all()
    if backend == "nccl" and on_cuda("NCCL's ddp_bf16 is measured"):
        assert "ddp_bf16" in set(rows.aggregation)
    assert "fsdp" in set(rows.aggregation)


@one_and_several
def test_precisions_and_synced_batch_statistics_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    """SyncBatchNorm is held against the full batch; TF32 is further away than float32, and nearer than bfloat16."""
    check_gpus(backend, ranks)
    run = run_of(
        *(backend, ranks, tmp_path, "workload=[cnn_digits,transformer_topics]", "reduction=[mean]", "iterations=2"),
        *("precision=[fp64,fp32,tf32,bf16,bf16_autocast,fp16_scaled]", "batchnorm=[per_rank,synced]", "sharding=[even,uneven]"),
    )
    rows = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    far = rows[rows["rank"] == 0].merge(run.cases, on="case_id").groupby(["workload", "precision"], observed=True).relative_l2
    assert (far.max().xs("fp64", level="precision") < 1e-12).all()
    topics = far.max()["transformer_topics"]
    assert topics["fp32"] < topics["bf16"]
    if on_cuda("TF32 lies between float32 and bfloat16"):
        assert topics["fp32"] < topics["tf32"] < topics["bf16"]
    if on_cuda("SyncBatchNorm runs"):
        assert set(run.cases[run.cases.batchnorm == "synced"].query("workload == 'cnn_digits'").status) == {"ok"}


@several
def test_one_rank_runs_out_of_memory_and_the_next_case_is_measured_in_the_same_world(
    backend: str, ranks: int, tmp_path: Path
) -> None:
    """Rank 0 waits on the device for rank 1, which has failed; with NCCL the groups are aborted, and made again."""
    check_gpus(backend, ranks)
    (tmp_path / "planted").mkdir()
    planted = (*plant(tmp_path / "planted"), *CASES, "restarts=0")
    run = run_of(backend, ranks, tmp_path / "results", *planted, status=1)
    failed, measured = (run.cases[run.cases.aggregation == name].iloc[0] for name in ("failing", "all_reduce"))
    assert (failed.status, measured.status) == ("failed", "ok"), failed.reason
    assert failed.reason.startswith("rank 1 on ")
    if on_cuda("running out of device memory is an OutOfMemoryError"):
        assert "OutOfMemoryError" in failed.reason
    assert "Timed out" not in failed.reason


def test_what_a_run_tells_of_its_gpus(tmp_path: Path) -> None:
    """Two ranks on one GPU: its facts, its clocks before and after, and no other process that is one of the ranks."""
    run = run_of("gloo", 2, tmp_path, "workload=[mlp_digits]", "reduction=[mean]")
    (conditions,) = run.environment["conditions"]
    for told, seen in zip(run.environment["ranks"], conditions["ranks"], strict=True):
        if on_cuda("a rank states name, memory, uuid, driver and clocks of its GPU"):
            assert told["device_name"] == torch.cuda.get_device_name(0)
            assert told["memory_bytes"] > 2**30
            assert told["uuid"]
            assert told["driver"]
            assert 0 < seen["after"]["sm_mhz"] <= told["max_sm_mhz"]
        pids = {rank["pid"] for rank in run.environment["ranks"]}
        if on_cuda("the state of a GPU has its utilization"):
            assert not seen["after"]["idle"] or seen["after"]["utilization_percent"] is not None
        processes = seen["device_processes"] if on_cuda("processes of the GPU are read from NVML") else NO_PROCESSES
        assert not processes["own_pid_seen"] or not pids & {process["pid"] for process in processes["others"]}
    (host,) = run.environment["hosts"]
    if on_cuda("the host's topology names the GPU's uuid"):
        assert f"GPU-{run.environment['ranks'][0]['uuid']}" in host["topology"]["uuids"]


def test_what_the_gpu_did_during_a_case(tmp_path: Path) -> None:
    """Samples lie within the case, on a case that takes seconds; NVML counts at least what the allocator holds."""
    asked = ("workload=[mlp_digits]", "workload.mlp_digits.hidden=8192", "reduction=[mean]", "until.relative=1e-9")
    long = ("until.seconds=3", "until.most=1000000", *few(["workload.mlp_digits.hidden=64", "until.seconds=0.1"]))
    run = run_of("nccl", 1, tmp_path, *asked, *long)
    if on_cuda("NVML samples the GPU during the case"):
        (row,) = run.devices.itertuples()
        (gpu,) = run.environment["ranks"]
        assert row.uuid == gpu["uuid"]
        assert row.samples - row.idle >= 5
        assert 0 < row.sm_mhz_min <= row.sm_mhz_median <= row.sm_mhz_max <= gpu["max_sm_mhz"]
        assert 0 < row.power_w_median <= row.power_w_max
        assert row.temperature_c_max > 0
        assert row.utilization_median > 0
        assert row.reserved_bytes > 0
        assert row.process_bytes != row.process_bytes or row.process_bytes >= row.reserved_bytes
        assert row.alloc_retries == 0


def test_ranges_for_a_profiler_change_no_figure_that_is_compared(tmp_path: Path) -> None:
    """With nvtx=true, and no profiler attached: the same bits, every phase timed, nothing left open."""
    asked = ("workload=[mlp_digits]", "reduction=[mean]", "iterations=3")
    nvtx = "true" if on_cuda("ranges of NVTX need a GPU") else "false"
    plain, marked = (
        run_of("nccl", 1, tmp_path / name, *asked, f"nvtx={key}") for name, key in (("no", "false"), ("yes", nvtx))
    )
    assert plain.cases.gradient_sha256.tolist() == marked.cases.gradient_sha256.tolist()
    assert len(plain.samples) == len(marked.samples)


def test_free_memory_counts_what_the_allocator_holds_unused() -> None:
    if not on_cuda("the caching allocator keeps what was released"):
        return
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    before = available_bytes(device, 1)
    buffer = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - available_bytes(device, 1) >= 2**28 - 2**21
    del buffer
    assert torch.cuda.memory_reserved(device) >= 2**28
    assert abs(before - available_bytes(device, 1)) <= 2**21, "the cache is free for this process"


def test_traces_on_cuda(tmp_path: Path) -> None:
    """Phases are ranges on the host, and kernels of the device are among the events."""
    run = run_of("nccl", 1, tmp_path, "workload=[mlp_digits]", "reduction=[mean]", "iterations=3", "profile=true")
    ((path,),) = RunDir(run.path).traces().values()
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert trace["distributedInfo"] == {"backend": backend_of("nccl"), "rank": 0, "world_size": 1}
    events = trace["traceEvents"]
    if on_cuda("kernels are among the events of a trace"):
        assert any(event.get("cat") == "kernel" for event in events)
    ranges = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for phase in ("forward", "backward", "aggregate"):
        assert ranges.count(phase) == run.config.iterations


def test_two_ranks_share_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL on the first GPU alone, whatever others there are."""
    if os.environ.get(SHARING) != "1" and on_cuda(f"{SHARING}=1 is needed"):
        pytest.skip(f"needs {SHARING}=1, and NCCL 2.30 or newer")
    monkeypatch.setitem(ENVIRONMENT, "CUDA_VISIBLE_DEVICES", _first_gpu())
    run = run_of("nccl", 2, tmp_path, "workload=[mlp_digits]", "reduction=[mean]", "precision=[fp64]", "iterations=2")
    assert set(run.cases.status) == {"ok"}
    rows = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    assert (rows.relative_l2 < 1e-12).all()
    if on_cuda("both ranks name one GPU"):
        assert len({rank["uuid"] for rank in run.environment["ranks"]}) == 1


def _first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def check_gpus(backend: str, ranks: int) -> None:
    """Skip where NCCL has fewer GPUs than ranks, unless the environment lets ranks share one (NCCL 2.30 and newer)."""
    visible = torch.cuda.device_count()
    if backend_of(backend) == "nccl" and ranks > visible and os.environ.get(SHARING) != "1":
        pytest.skip(f"nccl takes one rank a GPU, and {visible} are visible; {SHARING}=1 lets them share one")


def experiment(name: str, backend: str, ranks: int, results: Path, *overrides: str) -> Run:
    return run_of(backend, ranks, results, f"experiment={name}", f"name={name}", *overrides)


def run_of(backend: str, ranks: int, results: Path, *overrides: str, status: int = 0) -> Run:
    where = (f"device={DEVICE}", f"backend={backend_of(backend)}", f"torchrun.nproc_per_node={ranks}", f"results_dir={results}")
    done = launch(*where, *smaller(overrides), timeout=float(os.environ.get("GPU_TEST_S", HANG_S)))
    assert done.returncode == status, done.stderr + done.stdout
    return load_run(next(results.glob("*/latest")))
