"""The main job: what the default run must show."""

import pandas as pd
import pytest

from harness.report.pairwise import pairwise
from harness.schema.record import FULL_BATCH, RANK_0, REFERENCE
from tests.conftest import Finished, Measure

WORKLOADS = ["mlp_digits", "cnn_digits", "transformer_topics"]
MODES = [
    "none",
    "none_vector",
    "sum",
    "sum_then_divide",
    "mean",
    "one_by_one",
    "one_by_one_forward",
    "per_sample_vmap",
    "micro_batch",
]


def distances(finished: Finished, against: str) -> pd.DataFrame:
    """Relative L2 of the whole gradient: workload x reduction."""
    rows = finished.run.discrepancies
    rows = rows[(rows.against == against) & (rows.parameter == "")]
    return rows.merge(finished.run.cases, on="case_id").pivot(index="workload", columns="reduction", values="relative_l2")


@pytest.fixture(scope="module")
def pairs(every_mode: Finished) -> pd.DataFrame:
    return pairwise(every_mode.run).set_index(["workload", "pair"])


def test_the_only_skips(every_mode: Finished) -> None:
    cases = every_mode.run.cases
    skipped = cases[cases.status == "skipped"]
    by_device = skipped[skipped.sync == "device"]
    others = skipped[skipped.sync != "device"]
    assert set(cases.status) == {"ok", "skipped"}
    assert not every_mode.run.missing
    assert len(by_device) == len(WORKLOADS) * len(MODES)
    assert by_device.reason[by_device.reduction != "per_sample_vmap"].str.contains("CUDA").all()
    assert list(zip(others.workload, others.reduction, strict=True)) == [("cnn_digits", "per_sample_vmap")]
    assert "BatchNorm" in others.reason.item()


def test_equal_modes_are_exactly_equal(every_mode: Finished, pairs: pd.DataFrame) -> None:
    for workload in WORKLOADS:
        assert pairs.max_abs[workload, "none - one_by_one"] == 0
    for workload in ("mlp_digits", "cnn_digits"):
        assert pairs.max_abs[workload, "sum - mean"] == 0
        assert pairs.bitwise_equal[workload, "sum - mean"]


def test_every_mode_is_the_true_gradient_where_samples_are_independent(every_mode: Finished) -> None:
    for against in (REFERENCE, FULL_BATCH):
        table = distances(every_mode, against).loc[["mlp_digits", "transformer_topics"]]
        assert sorted(map(str, table.columns)) == sorted(MODES)
        assert (table < 1e-6).all(axis=None)


def test_batchnorm_makes_other_functions(every_mode: Finished, pairs: pd.DataFrame) -> None:
    own, full = (distances(every_mode, against).loc["cnn_digits"] for against in (REFERENCE, FULL_BATCH))
    assert (own[["none", "none_vector", "sum", "mean", "one_by_one"]] < 2e-6).all()
    assert full["mean"] > 1e-3
    for mode in ("one_by_one_forward", "micro_batch"):
        assert pairs.relative_l2["cnn_digits", f"mean - {mode}"] > 1e-3
    kinds = every_mode.run.findings.groupby("kind").statement.first()
    assert "another function" in kinds["other_function"]
    assert "another function than the full batch" in kinds["batch_coupling"]
    assert "another function than the full batch" in every_mode.output


def test_ranks_hold_the_same_bits(every_mode: Finished) -> None:
    rows = every_mode.run.discrepancies
    rows = rows[rows.against == RANK_0]
    assert len(rows) == 26
    assert rows.bitwise_equal.all()


def test_the_performance_warning_of_vmap_is_a_finding_and_no_noise(every_mode: Finished) -> None:
    findings = every_mode.run.findings
    warned = findings[findings.kind == "performance_warning"]
    assert set(warned.case_id.str.split(".").str[:2].str.join(".")) == {"transformer_topics.per_sample_vmap"}
    (statement,) = set(warned.statement)
    assert statement.startswith("per_sample_vmap on transformer_topics takes a slow path of torch, and its times include that")
    assert 'torch warns: "There is a performance drop because' in statement and statement.endswith('"')
    assert "performance drop" not in (every_mode.run.path / "ranks" / "0.log").read_text()


def test_samples(every_mode: Finished) -> None:
    samples = every_mode.run.samples
    assert set(samples.phase) == {"forward", "backward", "local_gradient", "aggregate", "step"}
    assert set(samples["clock"]) == {"host", "arrival"}
    assert (samples.seconds > 0).all()
    samples = samples[samples["clock"] == "host"]
    counts = samples.groupby(["case_id", "rank", "phase"], observed=True).warm_up.agg(["sum", "size"])
    assert (counts == [1, 3]).all(axis=None)
    wide = samples.pivot(index=["case_id", "rank", "iteration"], columns="phase", values="seconds")
    assert (wide.drop(columns="step").sum(axis=1) <= wide.step).all()


def test_memory_and_sizes_are_told(every_mode: Finished) -> None:
    measured = every_mode.run.cases.query("status == 'ok'")
    assert (measured.gradient_bytes == 4 * measured.num_parameters).all()
    assert (measured.peak_memory_bytes > 50 * 2**20).all()
    topics = measured[measured.workload == "transformer_topics"]
    assert (topics.max_rank_denominator > topics.min_rank_denominator).all()
    assert (topics.denominator == topics.min_rank_denominator + topics.max_rank_denominator).all()


def test_torchrun_and_launch_leave_equal_tables(smoke: Finished, smoke_by_torchrun: Finished) -> None:
    for table in ("discrepancies", "findings"):
        pd.testing.assert_frame_equal(getattr(smoke.run, table), getattr(smoke_by_torchrun.run, table))
    timed = ["peak_memory_bytes", "above_baseline_bytes", "reference_s", "compare_s", "wall_s"]
    pd.testing.assert_frame_equal(smoke.run.cases.drop(columns=timed), smoke_by_torchrun.run.cases.drop(columns=timed))
    for finished in (smoke, smoke_by_torchrun):
        assert finished.output.rstrip().endswith("report.md")
        assert finished.run.path.resolve().parent.name == "smoke"


def test_unequal_counts_make_rank_mean_wrong_and_the_report_says_so(smoke: Finished) -> None:
    rows = smoke.run.discrepancies
    rows = rows[(rows.against == REFERENCE) & (rows.parameter == "")].merge(smoke.run.cases, on="case_id")
    wrong = rows[(rows.workload == "transformer_topics") & (rows.normalization == "rank_mean")]
    assert (wrong.relative_l2 > 1e-3).all()
    assert (rows.drop(wrong.index).relative_l2 < 1e-6).all()
    assert "rank_mean weighs the terms of a short rank more" in smoke.output
    assert "global_mean weighs every term the same" in smoke.output


@pytest.mark.parametrize("ranks", [3])
def test_three_ranks_split_what_does_not_divide(ranks: int, measure: Measure) -> None:
    """16 samples on 3 ranks: 6, 5 and 5, and right under global_mean."""
    run = measure("experiment=smoke", "aggregation=[all_reduce,local]", "reduction=[sum,mean]", ranks=ranks)
    rows = run.discrepancies
    whole = rows[(rows.against == REFERENCE) & (rows.parameter == "")].merge(run.cases, on="case_id")
    right = whole[(whole.normalization == "global_mean") | (whole.aggregation == "local")]
    assert (right.relative_l2 < 1e-6).all()
    assert set(right[right.aggregation == "local"]["rank"]) == {0, 1, 2}
    digits = whole[
        (whole.workload == "mlp_digits") & (whole.normalization == "rank_mean") & (whole.aggregation == "all_reduce")
    ]
    assert (digits.relative_l2 > 1e-3).all(), "5 samples must weigh more than 6 under rank_mean"
    assert set(run.cases[run.cases.workload == "mlp_digits"].max_rank_denominator) == {6.0}
