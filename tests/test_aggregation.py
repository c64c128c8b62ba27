"""Every way of aggregating, as `experiment=aggregation` shows it; precisions, and what travels."""

from pathlib import Path

import pandas as pd
import pytest

from harness.report.__main__ import main as report_main
from harness.report.frame import Run, load_run
from harness.schema.record import FULL_BATCH, RANK_0, REFERENCE, ROUNDED
from harness.schema.run_dir import RunDir
from tests.conftest import Finished, Measure
from tests.running import ROOT, launch
from tests.skips import unknown

LOSSY = ("ddp_fp16", "ddp_powersgd")


def whole(run: Run, against: str) -> pd.DataFrame:
    """Rank 0's distances of the whole gradient, with the columns of the case."""
    rows = run.discrepancies
    rows = rows[(rows.against == against) & (rows.parameter == "") & (rows["rank"] == 0)]
    return rows.assign(case_id=rows.case_id.astype(str)).merge(run.cases, on="case_id")


def once(measure: Measure, *overrides: str, ranks: int = 2) -> Run:
    return measure(*overrides, "iterations=1", ranks=ranks)


def test_every_case_is_ok_or_skipped_for_a_known_reason(aggregation: Finished) -> None:
    cases = aggregation.run.cases
    assert not aggregation.run.missing
    assert set(cases.status) == {"ok", "skipped"}
    assert unknown(cases.reason[cases.status == "skipped"]) == []
    accumulating = cases.aggregation.eq("ddp_static_graph") & cases.reduction.eq("micro_batch")
    assert set(cases.aggregation[cases.status.eq("skipped") & ~accumulating]) == {"ddp_bf16"}


def test_global_mean_is_right_and_rank_mean_as_wrong_as_predicted(aggregation: Finished) -> None:
    rows = whole(aggregation.run, REFERENCE)
    rows = rows[~rows.aggregation.isin(LOSSY)]
    right = rows[(rows.normalization == "global_mean") | (rows.aggregation == "local")]
    wrong = rows.drop(right.index)
    assert (right.relative_l2 < 1e-6).all()
    by_length = wrong[wrong.sharding == "by_length"]
    assert (by_length.relative_l2 > 1e-2).all()
    assert (by_length.max_rank_denominator > 1.5 * by_length.min_rank_denominator).all()
    assert ((by_length.relative_l2 / by_length.predicted_relative_l2 - 1).abs() < 1e-6).all()
    assert len(by_length) == 2 * (len(set(rows.aggregation)) - 1) - 1, "two reductions, less local, and accumulation in one"


def test_ranks_hold_the_same_bits(aggregation: Finished) -> None:
    rows = aggregation.run.discrepancies
    assert rows.bitwise_equal[(rows.against == RANK_0) & (rows.parameter == "")].all()


def test_what_rounds_says_so_and_stays_within_its_dtype(aggregation: Finished) -> None:
    rows = whole(aggregation.run, REFERENCE)
    rounding = rows[(rows.aggregation == "ddp_fp16") & (rows.normalization == "global_mean")]
    assert rounding.relative_l2.between(1e-6, 2e-3).all()
    named = aggregation.run.findings[aggregation.run.findings.kind == "lossy"]
    assert set(rows[rows.case_id.isin(named.case_id.astype(str))].aggregation) == set(LOSSY)
    assert (rows.relative_l2[rows.aggregation == "ddp_powersgd"] > 1e-2).all(), "it has started"


def test_the_trade_is_told_and_drawn(aggregation: Finished) -> None:
    report = aggregation.run.path / "report"
    table = pd.read_csv(report / "trade.csv")
    measured = aggregation.run.cases[aggregation.run.cases.status == "ok"]
    assert list(table.case_id) == list(measured.case_id)
    assert (table.allowed_bytes == 2 * table.gradient_bytes + table.declared_bytes).all()
    picture = (report / "trade-transformer_topics.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "![trade-transformer_topics.png](trade-transformer_topics.png)" in (report / "report.md").read_text()
    assert "Trade: transformer_topics" in aggregation.output


@pytest.mark.full
@pytest.mark.alone
def test_memory_stays_within_what_is_declared(tmp_path: Path) -> None:
    """On 50 million parameters, where a resident set means something: two gradients, and what the options ask for.

    In processes of their own: one that has measured before holds memory that it can reuse.
    """
    axes = ("aggregation=[all_reduce,flat,ddp,fsdp]", "reduction=[mean,none]", "iterations=1")
    done = launch("experiment=memory", *axes, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "memory" / "latest")
    cases = run.cases
    assert (cases.num_parameters > 50_000_000).all()
    assert (cases.above_baseline_bytes < 2 * cases.gradient_bytes + cases.declared_bytes).all()
    flat = cases[(cases.aggregation == "flat") & (cases.reduction == "mean")]
    assert (flat.above_baseline_bytes > 0.9 * flat.gradient_bytes).all(), "its buffer is seen"
    alone = cases[(cases.aggregation == "all_reduce") & (cases.reduction == "mean")]
    assert (alone.above_baseline_bytes < 0.3 * alone.gradient_bytes).all(), "and there is none"


def test_what_is_sent_has_a_dtype_of_its_own(measure: Measure) -> None:
    run = once(
        measure,
        "workload=[mlp_digits]",
        "reduction=[mean]",
        "aggregation=[all_reduce,flat,ddp,local]",
        "precision=[fp32,fp64]",
        "communication=[same,fp32,bf16,fp16]",
    )
    skipped = run.cases[run.cases.status == "skipped"]
    assert unknown(skipped.reason) == []
    assert set(skipped.aggregation) == {"ddp", "local"}
    rows = whole(run, REFERENCE)
    rows = rows[rows.aggregation.isin(["all_reduce", "flat"])].set_index(["precision", "communication"]).relative_l2
    bounds = {"same": {"fp64": 1e-15, "fp32": 1e-6}, "fp32": {"fp64": 1e-6, "fp32": 1e-6}}
    for precision in ("fp64", "fp32"):
        for communication in ("same", "fp32"):
            assert (rows.loc[precision, communication] < bounds[communication][precision]).all()
        assert rows.loc[precision, "fp16"].between(1e-6, 2e-3).all()
        assert rows.loc[precision, "bf16"].between(1e-4, 2e-2).all()


def test_below_fp32_the_distance_is_stated_twice(measure: Measure) -> None:
    run = once(
        measure,
        "workload=[mlp_digits]",
        "reduction=[mean,sum]",
        "precision=[fp32,tf32,bf16,bf16_autocast,fp16_scaled]",
        "aggregation=[all_reduce,ddp,fsdp]",
    )
    assert unknown(run.cases.reason[run.cases.status == "skipped"]) == []
    assert set(run.cases.precision[run.cases.status == "skipped"]) == {"tf32"}
    original, rounded = whole(run, REFERENCE), whole(run, ROUNDED)
    assert set(rounded.precision) == {"bf16", "bf16_autocast", "fp16_scaled"}
    assert original.relative_l2[original.precision == "fp32"].max() < 1e-6
    assert original.relative_l2[original.precision != "fp32"].between(1e-5, 0.1).all()
    both = original.merge(rounded, on="case_id", suffixes=("", "_rounded"))
    parameters = both[both.precision == "bf16"]
    assert (parameters.relative_l2_rounded < parameters.relative_l2).all(), "part of the distance is the parameters' rounding"


def test_clipping_is_held_against_the_clipped_gradient(measure: Measure) -> None:
    run = once(
        measure,
        "workload=[mlp_digits]",
        "reduction=[mean]",
        "precision=[fp64]",
        "normalization=[global_mean,rank_mean]",
        "sharding=[uneven]",
        "aggregation=[all_reduce,ddp,fsdp,local]",
        "clip=[none,by_norm]",
        "clip.by_norm.max_norm=[0.01,1000]",
    )
    rows = whole(run, REFERENCE)
    right = rows[(rows.normalization == "global_mean") | (rows.aggregation == "local")]
    assert (right.relative_l2 < 1e-12).all()
    clipped = rows[rows["clip.by_norm.max_norm"] == 0.01]
    assert (abs(clipped.against_l2 / 0.01 - 1) < 1e-4).all(), "scaled to the norm, less 1e-6 that torch adds"
    assert (rows.against_l2[rows["clip.by_norm.max_norm"] == 1000] > 0.1).all()
    predicted = whole(run, "predicted")
    assert (predicted.relative_l2 < 1e-12).all()
    assert set(predicted.normalization) == {"rank_mean"}


def test_clipping_where_each_rank_is_left_with_its_own(measure: Measure) -> None:
    run = once(
        measure,
        *("workload=[mlp_digits]", "reduction=[mean]", "normalization=[rank_mean]", "precision=[fp64]", "clip=[by_norm]"),
        *("clip.by_norm.max_norm=0.01", "fault=[none,missing_all_reduce,dropped_rank,missing_division]"),
    )
    assert (run.cases.status == "ok").all()
    predicted = run.discrepancies[(run.discrepancies.against == "predicted") & (run.discrepancies.parameter == "")]
    assert (predicted.relative_l2 < 1e-12).all()
    assert predicted.case_id.nunique() == 3


def test_a_batch_that_overflows_is_found_before_the_case_begins(measure: Measure, tmp_path: Path) -> None:
    """Of the batches that training takes in turn the second is a thousand times as large."""
    (tmp_path / "conf" / "workload").mkdir(parents=True)
    (tmp_path / "conf" / "workload" / "outlier.yaml").write_text(OUTLIER_YAML)
    (tmp_path / "conf" / "outlier.py").write_text(OUTLIER)
    run = once(
        measure,
        *("--config-dir", str(tmp_path / "conf"), "workload=[outlier]", "reduction=[sum,mean]", "global_batch_size=8"),
        *(
            "precision=[fp16_scaled]",
            "aggregation=[all_reduce,ddp_powersgd,local]",
            "drift.steps=6",
            "drift.optimizers.sgd=1e-9",
        ),
    )
    assert (run.cases.status == "ok").all(), run.cases.reason
    assert (run.discrepancies.nonfinite == 0).all()
    assert run.drifts.loss.notna().all()


OUTLIER_YAML = """
outlier:
  _target_: harness.axes.workload.base.Workload
  model: {_target_: torch.nn.Linear, _partial_: true, in_features: 16, out_features: 8}
  loss: {_target_: torch.nn.MSELoss, _partial_: true}
  data: {_target_: outlier.load, _partial_: true}
"""
OUTLIER = """
import torch


def load():
    inputs = torch.randn(64, 16)
    inputs[::8] *= 300
    return inputs, torch.randn(64, 8)
"""


def test_masks_by_sample_make_dropout_a_function_of_the_batch(measure: Measure) -> None:
    run = once(
        measure,
        "workload=[dropout_digits]",
        "workload.dropout_digits.masks=[rank,sample]",
        "reduction=[mean,none,micro_batch,per_sample_vmap]",
        "aggregation=[all_reduce,ddp]",
        "sharding=[even,uneven]",
        "precision=[fp64]",
    )
    assert unknown(run.cases.reason[run.cases.status == "skipped"]) == []
    full, shard_wise = whole(run, FULL_BATCH), whole(run, REFERENCE)
    masks = "workload.dropout_digits.masks"
    assert (full.relative_l2[full[masks] == "sample"] < 1e-12).all(), "one function, however it is cut"
    by_rank = shard_wise[shard_wise[masks] == "rank"]
    same_masks = by_rank.reduction.eq("mean") | (by_rank.reduction.eq("none") & by_rank.aggregation.eq("all_reduce"))
    assert (by_rank.relative_l2[same_masks] < 1e-12).all(), "one forward of the shard draws what the reference draws"
    assert (by_rank.relative_l2[~same_masks] > 0.05).all(), "parts of it, or a second forward, draw other masks"
    assert (full.relative_l2[full[masks] == "rank"] > 0.05).all()
    kinds = run.findings.groupby("kind").case_id.nunique()
    assert kinds["other_function"] == (~same_masks).sum()
    assert kinds["batch_coupling"] == len(by_rank)


def test_compiled_and_deterministic_are_the_same_function(measure: Measure) -> None:
    run = once(
        measure,
        "workload=[mlp_digits]",
        "reduction=[mean,none,per_sample_vmap]",
        "execution=[eager,compile]",
        "determinism=[default,deterministic]",
        "aggregation=[all_reduce,overlap,ddp,fsdp]",
    )
    assert unknown(run.cases.reason[run.cases.status == "skipped"]) == []
    rows = whole(run, REFERENCE)
    assert set(rows.execution) == {"eager", "compile"}
    assert (rows.relative_l2 < 1e-6).all()


def test_synced_batch_statistics_need_cuda(measure: Measure) -> None:
    run = once(measure, "workload=[cnn_digits,mlp_digits]", "reduction=[mean]", "batchnorm=[per_rank,synced]")
    synced = run.cases[run.cases.batchnorm == "synced"]
    assert set(synced.status) == {"skipped"}
    assert unknown(synced.reason) == []
    assert whole(run, REFERENCE).relative_l2.max() < 1e-6


@pytest.mark.parametrize("sharding", ["empty_rank", "uneven"])
def test_a_rank_without_samples_hangs_nobody(sharding: str, measure: Measure) -> None:
    run = once(
        measure,
        "workload=[mlp_digits,cnn_digits,transformer_topics]",
        "reduction=[mean,micro_batch]",
        "normalization=[global_mean,rank_mean]",
        f"sharding=[{sharding}]",
        "aggregation=[all_reduce,overlap,ddp,fsdp]",
        "global_batch_size=16",
        "deadline_s=30",
    )
    assert (run.cases.status == "ok").all()
    rows = whole(run, REFERENCE)
    right = rows[(rows.normalization == "global_mean") & ~(rows.workload.eq("cnn_digits") & rows.reduction.eq("micro_batch"))]
    assert (right.relative_l2 < 1e-6).all()
    if sharding == "empty_rank":
        halved = rows[(rows.normalization == "rank_mean") & (rows.workload == "mlp_digits")]
        assert (abs(halved.relative_l2 - 0.5) < 1e-6).all(), "the mean of a mean and of 0"


def test_training_on_goes_the_same_way_under_every_strategy(measure: Measure) -> None:
    """Also where a rank has nothing, the loss is scaled, and its value is asked for between steps."""
    run = once(
        measure,
        "workload=[mlp_digits]",
        "reduction=[mean,sum]",
        "precision=[fp32,fp16_scaled]",
        "aggregation=[all_reduce,overlap,ddp,fsdp]",
        "sharding=[even,empty_rank]",
        "clip=[by_norm]",
        "drift.steps=3",
        "deadline_s=30",
    )
    assert (run.cases.status == "ok").all(), run.cases.reason
    drifts = run.drifts.assign(case_id=run.drifts.case_id.astype(str)).merge(run.cases[["case_id", "precision"]], on="case_id")
    for _, rows in drifts.groupby(["precision", "optimizer", "step"], observed=True):
        assert rows.loss.max() - rows.loss.min() < 1e-4, "one gradient, one path"


def test_fsdp_runs_after_a_case_that_failed(measure: Measure, tmp_path: Path) -> None:
    """A failure replaces the measured group, and what is cached of the old one must not come back."""
    (tmp_path / "conf" / "aggregation").mkdir(parents=True)
    (tmp_path / "conf" / "aggregation" / "raising.yaml").write_text("raising: {_target_: raising.RaisingAggregation}\n")
    (tmp_path / "conf" / "raising.py").write_text(RAISING)
    run = once(
        measure,
        *("--config-dir", str(tmp_path / "conf"), "workload=[mlp_digits]", "reduction=[mean]"),
        *("aggregation=[fsdp,raising,all_reduce]", "sharding=[even,uneven]"),
    )
    assert run.cases.groupby("aggregation", observed=True).status.unique().map(list).to_dict() == {
        "fsdp": ["ok"],
        "raising": ["failed"],
        "all_reduce": ["ok"],
    }


RAISING = """
from harness.axes.aggregation.base import Aggregation


class RaisingAggregation(Aggregation):
    def finish(self, gradients, group):
        raise RuntimeError("planted")
"""


@pytest.mark.parametrize("ranks", [4])
def test_a_strategy_from_outside_runs_in_the_same_matrix(ranks: int, measure: Measure) -> None:
    run = once(
        measure,
        *("--config-dir", str(ROOT / "docs" / "example"), "aggregation=[butterfly,all_reduce]"),
        *("workload=[mlp_digits]", "reduction=[mean,none,micro_batch]", "normalization=[global_mean,rank_mean]"),
        *("sharding=[even,empty_rank]", "precision=[fp64]"),
        ranks=ranks,
    )
    assert (run.cases.status == "ok").all()
    rows = whole(run, REFERENCE)
    right = rows[rows.normalization.eq("global_mean") | rows.sharding.eq("even")]
    assert set(right.aggregation) == {"butterfly", "all_reduce"}
    assert (right.relative_l2 < 1e-12).all()


@pytest.mark.parametrize("ranks", [3])
def test_a_strategy_from_outside_says_where_it_cannot_run(ranks: int, measure: Measure) -> None:
    example = str(ROOT / "docs" / "example")
    run = once(measure, "--config-dir", example, "aggregation=[butterfly]", "workload=[mlp_digits]", ranks=ranks)
    assert set(run.cases.reason) == {"recursive doubling takes a power of two of ranks, not 3"}


def test_one_report_over_runs_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["experiment=single_vs_multi", "world_sizes=[1,2]", "iterations=3", f"results_dir={tmp_path}"]
    done = launch(*asked, "workload=[cnn_digits,mlp_digits]", "aggregation=[local,all_reduce,ddp]")
    assert done.returncode == 0, done.stderr
    runs = sorted(path for path in (tmp_path / "single_vs_multi").iterdir() if not path.is_symlink())
    assert [load_run(path).environment["world_size"] for path in runs] == [1, 2]
    assert report_main(["show", *map(str, runs)]) == 0
    table = pd.read_csv(runs[-1] / "report" / "across.csv")
    assert len(table) == 2 * 2 * 3
    alone = table[table.ranks == 1]
    assert (alone.speed_up == 1).all()
    assert (alone.single_rank[alone.aggregation != "local"] == 0).all(), "one rank alone is the run on one rank"
    several = table[(table.ranks > 1) & (table.aggregation != "local")]
    assert (several.same_bits.astype(str) == "False").all()
    assert table.same_bits[table.aggregation == "local"].isna().all(), "own shards are no common gradient"
    assert several.exposed_s.notna().all()
    assert (several[REFERENCE] < 1e-6).all()
    assert (several.single_rank[several.workload == "cnn_digits"] > 1e-2).all(), "batch statistics are each rank's own"
    assert (several.single_rank[several.workload != "cnn_digits"] < 1e-6).all()
    assert "Threads a rank: 1." in done.stdout
    words = capsys.readouterr().out.split()
    assert " ".join(words) in " ".join(done.stdout.split()), "the report of the launcher, and of `show RUN RUN`"
    for cores, warned in ((1, True), (2, False)):
        for path in runs:
            RunDir(path).write_environment({**load_run(path).environment, "cores": cores})
        assert report_main(["show", *map(str, runs)]) == 0
        assert ("(!) 2 threads on 1 cores (2 ranks)" in " ".join(capsys.readouterr().out.split())) == warned


def test_runs_that_differ_in_more_than_their_ranks_are_told(
    measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("workload=[mlp_digits]", "reduction=[mean]")
    one = once(measure, *few, "global_batch_size=64", ranks=1)
    two = once(measure, *few, "global_batch_size=32")
    assert report_main(["show", str(one.path), str(two.path)]) == 0
    assert "The runs differ in more than their ranks: global_batch_size." in capsys.readouterr().out
    skipping = once(measure, *few, "precision=[fp32,tf32]", "sharding=[even,empty_rank]")
    assert report_main(["show", str(one.path), str(skipping.path)]) == 0
    assert "Cases without numbers" in capsys.readouterr().out
    table = pd.read_csv(skipping.path / "report" / "across.csv")
    assert set(table.sharding) == {"even", "empty_rank"}, "what varies in any of the runs names a case"
    assert table.speed_up[table.sharding == "empty_rank"].isna().all(), "there is nothing to compare it with"
    assert report_main(["show", str(one.path), str(tmp_path)]) == 2
