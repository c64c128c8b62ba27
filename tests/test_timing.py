"""Where the time goes, as real runs show it: arrivals, twins, policies of waiting, launches, orders, and when it is enough."""

from pathlib import Path

import pandas as pd
import pytest

from harness.report.frame import Run, load_run
from harness.schema.matrix import ordered_cases
from harness.schema.record import PREDICTED
from tests.conftest import Measure
from tests.running import ROOT, launch
from tests.skips import unknown

CASES = ("workload=[mlp_digits]", "reduction=[mean]")
DELAY_S = 0.040


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A straggler and none, under every policy of waiting, in turns, with their twins, in two launches."""
    results = tmp_path_factory.mktemp("waiting")
    done = launch(
        *(*CASES, f"results_dir={results}"),
        *("--config-dir", str(ROOT / "docs" / "example"), f"sync.straggler.milliseconds={DELAY_S * 1e3}"),
        "sync=[none,stream,device,event,barrier,barrier_after,wait,every_parameter,straggler]",
        "aggregation=[all_reduce,bucketed,ddp]",
        *("launches=2", "order=interleaved", "rounds=2", "iterations=5", "exposed=true"),
    )
    assert done.returncode == 0, done.stderr
    return load_run(results / "default" / "latest")


def seconds(run: Run, phase: str, clock: str = "host", **chosen: str) -> pd.DataFrame:
    """[launch and iteration, rank] of the cases that are so, warm-ups apart."""
    cases = run.cases
    for axis, option in chosen.items():
        cases = cases[cases[axis] == option]
    rows = pd.read_parquet(run.path / "samples", filters=[("case_id", "in", list(cases.case_id))])
    rows = rows[(rows.phase == phase) & (rows["clock"] == clock) & ~rows.warm_up]
    return rows.pivot_table(index=["case_id", "launch", "iteration"], columns="rank", values="seconds", observed=True)


def test_a_straggler_shows_as_skew_on_the_others_and_not_in_the_transfer(waiting: Run) -> None:
    """Whatever else the machine does: rank 1 sleeps at least so long, and nobody has the sum before the last one has come."""
    chosen = {"sync": "straggler", "aggregation": "all_reduce"}
    arrived = seconds(waiting, "aggregate", "arrival", **chosen)
    slept, waited = seconds(waiting, "sync", **chosen)[1], seconds(waiting, "aggregate", **chosen)[0]
    assert (slept >= DELAY_S).all()
    skew = arrived.max(axis=1) - arrived[0]
    assert (waited > skew).all()
    assert (arrived[1] > arrived[0]).any(), "the one that sleeps comes last"


def test_twins_leave_the_communication_out(waiting: Run) -> None:
    alone = seconds(waiting, "step_alone", sync="none")
    assert len(alone) == len(seconds(waiting, "step", sync="none")) == 3 * 2 * 5
    assert (seconds(waiting, "collective_alone", sync="none") > 0).all(axis=None)
    beside = seconds(waiting, "step_alone", sync="straggler", aggregation="all_reduce")
    assert (beside[0] < DELAY_S).any(), "without communication rank 0 waits for nobody"


def test_policies_that_a_case_cannot_follow_are_skipped(waiting: Run) -> None:
    cases = waiting.cases
    skipped = cases[cases.status == "skipped"]
    assert unknown(skipped.reason) == []
    assert set(skipped.sync[(skipped.aggregation == "bucketed")]) == {"stream", "device", "event", "every_parameter"}
    by_itself = cases[(cases.aggregation == "ddp") & (cases.status == "ok")]
    assert set(by_itself.sync) == {"none", "barrier", "barrier_after", "straggler"}


def test_no_policy_changes_the_bits(waiting: Run) -> None:
    cases = waiting.cases[waiting.cases.status == "ok"]
    assert (cases.groupby("aggregation", observed=True).gradient_sha256.nunique() == 1).all()


def test_every_launch_has_all_rows_and_visits_are_in_turn(waiting: Run) -> None:
    measured = waiting.cases[waiting.cases.status == "ok"]
    for case_id in measured.case_id:
        samples = pd.read_parquet(waiting.path / "samples", filters=[("case_id", "==", case_id)])
        counted = samples[samples.phase == "step"].groupby(["launch", "rank", "visit"]).warm_up.agg(["size", "sum"])
        assert set(counted.index.get_level_values("launch")) == {0, 1}
        made = (counted["size"] - counted["sum"]).groupby(["launch", "rank"])
        assert made.agg(list).map(lambda each: each == [3, 2]).all()


def run_of(measure: Measure, *overrides: str) -> Run:
    return measure(*CASES, *overrides)


def test_adaptive_stopping_says_why_it_stopped(measure: Measure) -> None:
    overrides = ("until.relative=0.9", "until.seconds=600", "iterations=8", "normalization=[global_mean,rank_mean]")
    run = run_of(measure, *overrides)
    assert set(run.cases.stop_reason) == {"precise"}
    overrides = ("until.relative=1e-9", "until.seconds=600", "until.most=12", "iterations=4", "fault=[stale_rank]")
    run = run_of(measure, *overrides)
    assert set(run.cases.stop_reason) == {"limit"}
    assert set(run.cases.iterations) == {12}
    samples = run.samples
    steps = samples[(samples.phase == "step") & ~samples.warm_up].groupby("rank").size()
    assert set(steps) == {12}, "as many on every rank"
    assert run.cases.predicted_relative_l2.notna().all(), "the fault's theory knows how many iterations were made"


def test_the_time_budget_ends_a_case(measure: Measure) -> None:
    run = run_of(measure, "until.relative=1e-9", "until.seconds=1e-6", "iterations=30", "until.most=1000000")
    assert set(run.cases.stop_reason) == {"budget"}
    assert set(run.cases.iterations) == {30}


def test_faults_that_look_back_come_out_right_under_interleaved_visits(measure: Measure) -> None:
    axes = ("fault=[none,stale_rank,missing_zero_grad]", "precision=[fp64]", "reduction=[mean,none]")
    run = run_of(measure, *axes, "order=interleaved", "rounds=3", "iterations=7")
    rows = run.discrepancies[(run.discrepancies.against == PREDICTED) & (run.discrepancies.parameter == "")]
    assert rows.case_id.nunique() == 4
    assert (rows.relative_l2 < 1e-12).all()


TWINS = ("exposed=false", "exposed=true")
"""A run without twins, and the same run with them."""


def test_twins_leave_gradients_as_they_are(measure: Measure) -> None:
    """Under strategies that communicate in backward, shard parameters or scale losses."""
    axes = ("aggregation=[flat,ddp,ddp_powersgd,fsdp]", "precision=[fp32,fp16_scaled]", "iterations=3")
    runs = [run_of(measure, *axes, twins) for twins in TWINS]
    without, beside = (run.cases.set_index("case_id") for run in runs)
    assert set(beside.status) == {"ok"}
    assert (beside.gradient_sha256 == without.gradient_sha256).all()
    alone = runs[1].samples[runs[1].samples.phase == "collective_alone"].case_id.astype(str)
    assert set(beside.aggregation[alone.unique()]) == {"flat", "ddp"}, (
        "the others do not send as many bytes as the gradient has"
    )


@pytest.mark.full
@pytest.mark.alone
def test_twins_leave_memory_as_it_is(tmp_path: Path) -> None:
    """Of a gradient of 38 MiB, where a resident set repeats to 7 MiB; under autocast and FSDP2 it moves by 50 of itself.

    In processes of their own: one that has measured before holds memory that it can reuse. PowerSGD has no collective twin,
    whose turn would free the gradients of the other one.
    """
    axes = (*CASES, "aggregation=[flat,ddp,ddp_powersgd]", "iterations=3", "workload.mlp_digits.hidden=3000")
    measured = []
    for place, twins in enumerate(TWINS):
        results = tmp_path / str(place)
        done = launch(*axes, twins, f"results_dir={results}")
        assert done.returncode == 0, done.stderr
        measured.append(load_run(results / "default" / "latest").cases.set_index("case_id"))
    without, beside = measured
    for column in ("above_baseline_bytes", "peak_memory_bytes"):
        more = beside[column] - without[column]
        assert (more < without.gradient_bytes.max() / 2).all(), f"{column}: not what the twins take, too"


def test_a_shuffled_order_is_recorded_and_repeats(measure: Measure) -> None:
    axes = ("normalization=[global_mean,rank_mean]", "aggregation=[all_reduce,flat,local]", "iterations=1")
    run = run_of(measure, "order=shuffled", *axes, "launches=2")
    rows = pd.read_parquet(run.path / "cases")
    for number in (0, 1):
        placed = rows[rows.launch == number].sort_values("position").case_id.tolist()
        assert placed == [case.case_id for case in ordered_cases(run.config, number)]
    assert [case.case_id for case in ordered_cases(run.config, 0)] != [case.case_id for case in ordered_cases(run.config, 1)]
