"""Device time without launches, on a simulated device: closed forms, early holds, and steps that make the host wait."""

from collections.abc import Callable, Iterator
from math import isnan, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from harness.axes.sync.base import Sync
from harness.probes import hold
from harness.rank import clock, exposure, queued
from harness.rank import loop as loop_module
from harness.rank.casework import CaseWork, whole
from harness.rank.clock import Stopwatch
from harness.rank.loop import Loop
from harness.rank.queued import QueuedStopwatch, host_waits
from harness.rank.rig import Cut
from harness.rank.trial import Measured, Trial
from harness.report.frame import load_run
from tests.conftest import Measure, shown
from tests.fake_cuda import CYCLES_PER_S, FakeCuda, install
from tests.options import AVAILABLE, make
from tests.worlds.pool import Pool

CUDA = torch.device("cuda", 0)
US = 1e-6
STEP_S = 120e-6
"""Time to launch `phases`."""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    yield install(monkeypatch, clock, queued)
    hold.cycles_per_s.cache_clear()


def phases(cuda: FakeCuda, *, syncs: bool = False) -> list[tuple[str, Callable[[], None]]]:
    """Small kernels that take longer to launch than to run, and larger ones; a launch takes 8 us."""
    then = [("sync", cuda.synchronize)] if syncs else []
    return [("forward", cuda.kernels(10, 1 * US, 8 * US)), *then, ("backward", cuda.kernels(5, 20 * US, 8 * US))]


def watch(cuda: FakeCuda, host_s: float = STEP_S, **chosen: Any) -> QueuedStopwatch:
    names = [name for name, _ in phases(cuda, syncs=chosen.pop("syncs", False))]
    control = SimpleNamespace(any=chosen.get("any", lambda flag: flag))
    return QueuedStopwatch(CUDA, names, control, chosen.get("align", lambda: None), host_s, chosen.get("enter", clock.unseen))


def test_launch_bound_and_launch_free_times_come_out_as_the_closed_form_says(cuda: FakeCuda) -> None:
    """Idle: the last small kernel begins when it is launched, at 80 us; held: kernels follow one another without a gap."""
    idle = Stopwatch(CUDA, ["forward", "backward"], lambda phase: None)
    by_clock = dict(zip(idle.columns, idle.time(phases(cuda)), strict=True))
    assert by_clock["forward", "host"] == pytest.approx(80 * US)
    assert by_clock["step", "host"] == pytest.approx(120 * US)
    assert by_clock["forward", "cuda_event"] == pytest.approx(81 * US)
    assert by_clock["step", "cuda_event"] == pytest.approx((88 + 5 * 20) * US)
    held = watch(cuda)
    assert held.columns == [(phase, "cuda_queued") for phase in ("forward", "backward", "step")]
    assert held.time(phases(cuda)) == pytest.approx([10 * US, 100 * US, 110 * US])


def test_everything_is_launched_between_the_hold_and_the_query(cuda: FakeCuda) -> None:
    watch(cuda, align=lambda: cuda.kernel(0.0, name="align")).time(phases(cuda))
    launched = ["record", *["kernel"] * 10, "record", "record", *["kernel"] * 5, "record"]
    read = ["elapsed_time"] * 3
    assert cuda.calls == ["synchronize", "hold", "align", *launched, "query", "synchronize", *read]
    assert cuda.held == [1e-3], "twice the launch time, at least 1 ms"


def test_every_iteration_enters_its_phases(cuda: FakeCuda) -> None:
    """The watchdog counts a rank's seconds from its last phase: a part of many iterations must not look like one long phase."""
    entered: list[str] = []
    held = watch(cuda, enter=entered.append)
    for _ in range(2):
        held.time(phases(cuda))
    assert entered == ["forward", "backward"] * 2


def test_a_hold_that_ends_early_is_marked_and_the_next_one_is_longer(cuda: FakeCuda) -> None:
    """The host takes 3 ms once, as when another process has its core, and the hold was 1 ms."""
    held, late = watch(cuda), [0.003, 0.0, 0.0]

    def hiccup() -> None:
        cuda.now += late.pop(0)

    seen = [held.time([("forward", hiccup), ("backward", cuda.kernels(5, 20 * US, 8 * US))]) for _ in range(3)]
    assert [isnan(row[-1]) for row in seen] == [True, False, False]
    assert all(map(isnan, seen[0]))
    assert seen[1] == pytest.approx([0.0, 100 * US, 100 * US])
    assert cuda.held[:2] == pytest.approx([1e-3, 2 * (0.003 + 40 * US)])
    assert not held.refused


def test_an_early_hold_on_another_rank_marks_the_iteration_here(cuda: FakeCuda) -> None:
    held = watch(cuda, any=lambda flag: True)
    assert all(map(isnan, held.time(phases(cuda))))


def test_a_step_that_makes_the_host_wait_is_refused(cuda: FakeCuda) -> None:
    held, iterations = watch(cuda, syncs=True), []
    for _ in range(10):
        before = len(cuda.calls)
        assert all(map(isnan, held.time(phases(cuda, syncs=True))))
        iterations.append(len(cuda.calls) > before)
    assert iterations == [True] * 3 + [False] * 7, "nothing runs after the third try"
    assert held.refused
    assert sum(cuda.held) < 0.02


def test_early_holds_between_good_ones_refuse_nothing(cuda: FakeCuda) -> None:
    """Every other iteration is disturbed on some rank."""
    flags = iter([True, False] * 5)
    held = watch(cuda, any=lambda flag: next(flags))
    seen = [isnan(held.time(phases(cuda))[-1]) for _ in range(10)]
    assert seen == [True, False] * 5


def test_no_hold_is_longer_than_two_seconds(cuda: FakeCuda) -> None:
    held = watch(cuda, host_s=30.0, syncs=True)
    for _ in range(3):
        held.time(phases(cuda, syncs=True))
    assert cuda.held == [2.0] * 3
    assert held.refused


def test_more_launches_than_the_driver_queues_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    full = install(monkeypatch, clock, queued, queue=8)
    held = watch(full)
    assert [held.time(phases(full)) for _ in range(3)]
    assert held.refused


def test_the_rate_of_a_hold_is_that_of_a_busy_device(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of an idle device rises over the first calls."""
    rates = iter([0.2, 0.3, 0.6, 0.9, *[1.0] * 20])
    sleep = cuda.sleep

    def warming(cycles: int) -> None:
        cuda.cycles_per_s = CYCLES_PER_S * next(rates)
        sleep(cycles)

    monkeypatch.setattr(torch.cuda, "_sleep", warming)
    hold.cycles_per_s.cache_clear()
    assert hold.cycles_per_s() == pytest.approx(CYCLES_PER_S)
    assert len(cuda.held) == 6


def test_the_device_waits_for_the_devices_of_other_ranks(cuda: FakeCuda) -> None:
    """Rank 1 is held 5 ms longer: no rank's first event comes before, and a slow launch here is still ahead."""
    held = watch(cuda, align=lambda: cuda.kernel(5e-3))

    def slow() -> None:
        cuda.now += 4e-3

    assert held.time([("forward", slow), ("backward", cuda.kernels(5, 20 * US, 8 * US))]) == pytest.approx(
        [0.0, 100 * US, 100 * US]
    )


def test_twins_are_timed_by_other_watches(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the host ahead the step without communication, and the collective, show the device's work alone."""
    monkeypatch.setattr(exposure, "_buffers", lambda *arguments: [])
    rig = SimpleNamespace(names=lambda: ["forward", "backward"], phases=[phases(cuda)], model=nn.Linear(1, 1))
    world = SimpleNamespace(device=CUDA, measured=None)
    twins = exposure.Twins(rig, world, None, as_many_bytes=True)  # type: ignore[arg-type]
    control = SimpleNamespace(any=lambda flag: flag)
    held = twins.watched(lambda names: QueuedStopwatch(CUDA, names, control, lambda: None, STEP_S))  # type: ignore[arg-type]
    assert held.columns == [("step_alone", "cuda_queued"), ("collective_alone", "cuda_queued")]
    assert held.time(0, lambda model, run: run()) == pytest.approx([110 * US, 0.0])
    assert twins.columns[0] == ("step_alone", "host"), "the twins keep their own watches"
    assert twins.time(0, lambda model, run: run())[:2] == pytest.approx([120 * US, 188 * US])


@pytest.mark.parametrize(
    ("backend", "spans_ranks", "sync", "waits"),
    [("nccl", True, False, ""), ("gloo", True, False, "gloo"), ("gloo", False, False, ""), ("nccl", True, True, "sync policy")],
)
def test_what_is_known_to_make_the_host_wait_costs_no_hold(backend: str, spans_ranks: bool, sync: bool, waits: str) -> None:
    reason = host_waits(parts(sync=sync), SimpleNamespace(backend=backend, size=2), spans_ranks=spans_ranks)  # type: ignore[arg-type]
    assert (waits in reason) and bool(reason) == bool(waits)


def parts(*, sync: bool = False, aggregation: str = "all_reduce", batchnorm: str = "per_rank") -> Any:
    """Parts of a case that matter here; the last two are real options."""
    own = {"aggregation": make("aggregation")[aggregation], "batchnorm": make("batchnorm")[batchnorm]}
    return SimpleNamespace(sync=SimpleNamespace(host_waits=sync), **own)


@pytest.mark.parametrize(
    ("chosen", "size", "waits"),
    [
        ({"aggregation": "ddp_powersgd"}, 2, "PowerSGD"),
        ({"aggregation": "ddp_powersgd"}, 1, "PowerSGD"),
        ({"aggregation": "ddp"}, 2, ""),
        ({"batchnorm": "synced"}, 2, "SyncBatchNorm"),
        ({"batchnorm": "synced"}, 1, ""),
    ],
)
def test_modules_of_torch_that_wait_cost_no_hold(chosen: dict[str, str], size: int, waits: str) -> None:
    """On one rank SyncBatchNorm is BatchNorm."""
    reason = host_waits(parts(**chosen), SimpleNamespace(backend="nccl", size=size), spans_ranks=True)  # type: ignore[arg-type]
    assert (waits in reason) and bool(reason) == bool(waits)


def test_the_policies_that_wait_say_so() -> None:
    waiting = {name for name, policy in make("sync").items() if isinstance(policy, Sync) and policy.host_waits}
    assert waiting == set(AVAILABLE["sync"]) - {"none", "wait"}


COLUMNS = [("step", "host"), ("step", "cuda_queued"), ("step_alone", "cuda_queued")]


def queued_part(cuda: FakeCuda, run: list[tuple[str, Callable[[], None]]], **chosen: Any) -> tuple[Any, list[str]]:
    """What a trial of one rank sees after 1 warm-up and 6 iterations, and the phases that it enters; its twin never waits."""
    control = SimpleNamespace(any=lambda flag: flag)
    world = SimpleNamespace(device=CUDA, backend="nccl", size=1, control=control, measured=None)
    trial = Trial(parts(), None, world, asked_warm_up=1, measured=6, queued=True, **chosen)  # type: ignore[arg-type]
    rig = SimpleNamespace(names=lambda: [name for name, _ in run], phases=[run], model=nn.Linear(1, 1))
    own = phases(cuda)
    alone = SimpleNamespace(names=lambda: [name for name, _ in own], phases=[own], model=nn.Linear(1, 1))
    twins = exposure.Twins(alone, world, None, as_many_bytes=False)  # type: ignore[arg-type]
    before = SimpleNamespace(columns=[("step", "host")])
    loop = Loop(CUDA, rig, before, None, twins, lambda model, run: run(), rows=[[STEP_S]] * 7)  # type: ignore[arg-type]
    entered: list[str] = []
    cuda.calls.clear()
    return trial._queued(loop, entered.append), entered


@pytest.fixture
def quiet(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The device, with memory counters that stand still."""
    monkeypatch.setattr(loop_module, "peak_bytes", lambda device: 0)
    monkeypatch.setattr(loop_module, "reset_peak", lambda device: None)
    monkeypatch.setattr(Cut, "spans_ranks", True)
    return cuda


def test_a_trial_enters_the_phases_of_each_queued_iteration(quiet: FakeCuda) -> None:
    seen, entered = queued_part(quiet, phases(quiet))
    assert entered == ["forward", "backward"] * 6
    assert seen.reason == ""
    assert seen.seconds.isfinite().sum(0).tolist() == [6] * 4
    assert seen.launch_s == pytest.approx(STEP_S)


def test_a_step_that_waits_is_refused_though_its_twin_runs_ahead(quiet: FakeCuda) -> None:
    """After the third try nothing runs any more: neither the step nor its twin."""
    seen, entered = queued_part(quiet, phases(quiet, syncs=True))
    assert seen.columns[-1] == ("step_alone", "cuda_queued")
    assert seen.seconds[:, -1].isfinite().sum() == 3
    assert seen.reason == queued.NOT_AHEAD
    assert entered == ["forward", "sync", "backward"] * 3
    assert seen.seconds.shape == (7, 5)
    assert len(quiet.held) == 6


def test_a_visit_begins_with_the_launch_times_of_the_last_one(quiet: FakeCuda) -> None:
    queued_part(quiet, phases(quiet), launch_s=0.01)
    assert quiet.held[0] == pytest.approx(0.02)
    work = SimpleNamespace(parts={"case": parts()}, _seen={"case": [visit([1.0, 1.0, 1.0], launch_s=0.01)]}, world=None)
    work.config, work.materials = MagicMock(iterations=4), MagicMock()
    work.parts["case"].workload = None
    trial = CaseWork._trial(work, "case", 2)  # type: ignore[arg-type]
    assert trial.launch_s == 0.01


def visit(row: list[float], **more: Any) -> Measured:
    """One visit of one iteration."""
    return Measured(COLUMNS, torch.tensor([row], dtype=torch.float64), [(0, 1)], "", [], 0, 0, [], **more)


def test_without_a_step_of_the_clock_its_other_columns_are_left_out() -> None:
    refused = visit([1.0, nan, 2.0], not_queued="it waits")
    seen = whole([refused, refused])
    assert (seen.columns, seen.seconds.tolist(), seen.not_queued) == (COLUMNS[:1], [[1.0], [1.0]], "it waits")
    seen = whole([visit([1.0, 3.0, 2.0]), refused])
    assert (seen.columns, seen.not_queued) == (COLUMNS, "")


MATRIX = (
    *("workload=[mlp_digits]", "reduction=[mean]", "fault=[stale_rank,missing_zero_grad]", "precision=[fp64]"),
    *("iterations=3", "warm_up=2", "order=interleaved", "rounds=2"),
)


@pytest.mark.parametrize("ranks", [2])
def test_the_second_iterations_change_no_result(worlds: Pool, measure: Measure, tmp_path: Path, ranks: int) -> None:
    """Of a fault that looks back, and one that adds to what the iteration before has left."""
    without = measure(*MATRIX).cases.set_index("case_id")
    run = load_run(worlds.run(ranks, "tests.worlds.queued:measure", [*MATRIX, f"results_dir={tmp_path}"], True))
    cases = run.cases.set_index("case_id")
    assert (cases.gradient_sha256 == without.gradient_sha256).all()
    assert (cases.predicted_relative_l2.dropna() == without.predicted_relative_l2.dropna()).all()
    steps = run.samples[(run.samples.phase == "step") & (run.samples["clock"] == "cuda_queued")]
    assert steps.seconds[steps.warm_up].isna().all()
    assert (steps.seconds[~steps.warm_up] == 0.0).all(), "the stand-in's device has nothing to do"
    assert len(steps) == len(cases) * ranks * (3 + 2 * 2)
    assert "step, device without launches ms" in shown(run).output


@pytest.mark.parametrize("ranks", [2])
def test_a_case_without_the_clock_says_why(worlds: Pool, tmp_path: Path, ranks: int) -> None:
    overrides = [*MATRIX[:2], f"results_dir={tmp_path}"]
    run = load_run(worlds.run(ranks, "tests.worlds.queued:measure", overrides, False))
    assert "cuda_queued" not in set(run.samples["clock"])
    (statement,) = run.findings[run.findings.kind == "not_queued"].statement.unique()
    assert "(clock cuda_queued): gloo's collectives make the host wait" in statement
