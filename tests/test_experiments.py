"""The named experiments, as a user asks for them."""

import re
from pathlib import Path

import pytest

from harness.report.render import show
from harness.report.staleness import reads
from harness.report.stories import tell
from harness.report.stories.claims import FAILS, UNTESTABLE
from harness.schema.record import PREDICTED
from tests.conftest import Finished, Measure, shown
from tests.options import AVAILABLE

CUDA = 4
"""Accesses that need a CUDA stream; as many need NCCL."""


def test_controls_are_never_stale_and_an_async_read_is(gradient_sums: Finished) -> None:
    rows = gradient_sums.run.observations
    counted = reads(rows[rows.probe.astype(str) == "staleness"])
    safe = counted[counted.safe]
    assert (safe.stale + safe.torn == 0).all()
    early = counted[counted.subject.str.contains("read before wait") & counted.setting.str.startswith("delayed")]
    assert (early.stale > 0).all(), "rank 0 reads before the others have joined, every time; what they see is a race"
    hazards = counted[~counted.safe]
    assert set(hazards[hazards.stale == hazards.trials].subject) >= {
        ".grad in a tensor hook",
        "kept .grad, zero_grad in place",
        "kept .grad, DDP gradient_as_bucket_view, set_to_none=True",
    }


def test_what_needs_cuda_is_skipped_and_says_why(gradient_sums: Finished) -> None:
    probes = gradient_sums.run.probes
    skipped = probes[probes.status == "skipped"]
    assert skipped.reason.str.contains("no CUDA stream").sum() == CUDA
    assert skipped.reason.str.contains("the wait in question is NCCL's").sum() == 4
    assert set(probes.status) == {"ok", "skipped"}
    assert "there is no CUDA stream to race with" in gradient_sums.output


def test_what_an_alias_does_not_act_on_is_recorded(reduction_modes: Finished) -> None:
    findings = reduction_modes.run.findings
    nothing = findings[findings.kind == "fault_without_effect"].case_id.astype(str).str.split(".").str[1]
    acts = findings[findings.kind == "fault"].case_id.astype(str).str.split(".").str[1]
    assert set(nothing) == {"sum", "sum_then_divide", "mean"}
    assert set(acts) == {"none", "one_by_one", "one_by_one_forward"}


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_alias_on_other_worlds(ranks: int, measure: Measure) -> None:
    few = ("probe=[]", "drift.steps=0", "reduction=[none,sum,mean,one_by_one]", "iterations=1")
    run = measure("experiment=reduction_modes", "fault=[alias]", *few, ranks=ranks)
    rows = run.discrepancies[run.discrepancies.against.str.startswith("case:") & (run.discrepancies.parameter == "")]
    reductions = run.cases.set_index("case_id").reduction.astype(str)
    names = rows.case_id.astype(str).map(reductions) + " " + rows.against.str.removeprefix("case:").map(reductions)
    inside = names.isin(("one_by_one none", "mean sum"))
    assert inside.sum() == 12, "two pairs, two precisions, three batch sizes"
    assert (rows.max_abs[inside] == 0).all()
    assert (rows.max_abs[~inside] > 0.01).all()
    predicted = run.cases[(run.cases.precision == "fp64") & (run.cases.reduction == "none")].set_index("case_id")
    apart = rows[rows.against.str.removeprefix("case:").isin(predicted.index) & ~inside]
    expected = apart.against.str.removeprefix("case:").map(predicted.predicted_max_abs)
    assert len(apart) == 6
    assert ((apart.max_abs - expected) / expected).abs().max() < 1e-12


@pytest.mark.parametrize("ranks", [3])
def test_every_fault_comes_out_as_predicted_on_real_models(ranks: int, measure: Measure) -> None:
    """In float64 on three ranks: tokens that count unequally, and batch statistics, which a dropped input changes."""
    faults = ",".join(AVAILABLE["fault"])
    run = measure(
        *("workload=[transformer_topics,cnn_digits]", "reduction=[mean,none]", "normalization=[rank_mean]", "precision=[fp64]"),
        *(f"fault=[{faults}]", "fault.dropped_rank.rank=2", "fault.dropped_sample.rank=1", "fault.dropped_sample.sample=3"),
        *("global_batch_size=16", "iterations=2", "warm_up=0"),
        ranks=ranks,
    )
    assert (run.cases.status == "ok").all()
    rows = run.discrepancies[(run.discrepancies.against == PREDICTED) & (run.discrepancies.parameter == "")]
    rows = rows[rows["rank"] == 0]
    faulty = run.cases[run.cases.fault != "none"]
    acting = run.findings[run.findings.kind == "fault"].case_id.astype(str)
    assert set(acting) <= set(rows.case_id.astype(str)) & set(faulty.case_id)
    assert len(set(acting)) >= len(faulty) - 2, "only the alias does nothing, to mean"
    assert rows.relative_l2.max() < 1e-12
    moved = faulty[faulty.case_id.isin(acting)].predicted_relative_l2
    assert (moved > 1e-3).all()


def test_theory_is_silent_where_it_has_nothing_to_say(measure: Measure) -> None:
    """Samples that influence each other and are taken one by one; a read that is a race."""
    run = measure(
        *("workload=[cnn_digits]", "reduction=[one_by_one_forward,sum]", "fault=[alias,read_before_wait]", "iterations=1"),
        *("fault.read_before_wait.late=false", "warm_up=0", "global_batch_size=8"),
    )
    assert run.cases.predicted_relative_l2.isna().all()
    assert not (run.discrepancies.against == PREDICTED).any()
    acting = run.findings[run.findings.kind == "fault"].case_id.astype(str)
    assert len(acting) == 3, "all but the alias under sum"


def test_ranks_with_unequal_theories_stay_together(measure: Measure) -> None:
    """Rank 1 has one sample, so that what it divides its leftover by is 1; rank 0 divides by 2."""
    rows = measure(
        *(
            "workload=[mlp_digits]",
            "reduction=[sum,none]",
            "aggregation=[local]",
            "fault=[missing_zero_grad]",
            "precision=[fp64]",
        ),
        *("global_batch_size=3", "iterations=2", "warm_up=0"),
    ).discrepancies
    rows = rows[(rows.against == PREDICTED) & (rows.parameter == "")]
    assert sorted(rows["rank"]) == [0, 0, 1, 1]
    assert (rows.relative_l2 < 1e-12).all()


FAILING = """
import torch.distributed as dist
from harness.probes.base import Machine, Probe, Question
from harness.schema.record import Observation
import torch

class Failing(Probe):
    "Rank 1 fails before a collective; the next question uses the group again."

    def questions(self, machine):
        def bad():
            if machine.rank == 1:
                raise RuntimeError("planted")
            machine.meet()
            yield Observation("", "never", 0.0)

        def good():
            x = torch.ones(1)
            dist.all_reduce(x, group=machine.group)
            yield Observation("", "ranks", float(x))

        return [Question("bad", bad), Question("good", good)]
"""


def test_a_question_that_raises_fails_alone(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "conf" / "probe").mkdir(parents=True)
    (tmp_path / "conf" / "probe" / "failing.yaml").write_text("failing:\n  _target_: failing.Failing\n")
    (tmp_path / "conf" / "failing.py").write_text(FAILING)
    asked = ("probe=[failing]", "workload=[mlp_digits]", "reduction=[sum]", "iterations=1")
    run = measure("--config-dir", str(tmp_path / "conf"), *asked)
    assert run.probes.set_index("subject").status.to_dict() == {"bad": "failed", "good": "ok"}
    assert show([run.path]), "what failed is a status of 1"
    assert re.search(r"rank 1 on \S+, in phase ask: RuntimeError: planted", run.probes.reason[0])
    assert (run.observations.value == 2).all()


@pytest.mark.parametrize("ranks", [1])
def test_one_rank_tells_what_it_can(ranks: int, measure: Measure) -> None:
    """Of sums over ranks it can say nothing; the report is whole."""
    finished = shown(
        measure(
            *("experiment=gradient_sums", "workload=[mlp_digits]", "drift.steps=0", "probe=[staleness,sum_over_ranks]"),
            *("probe.staleness.trials=5", "probe.staleness.controls=5"),
            ranks=ranks,
        )
    )
    claims, *_ = tell(finished.run)
    verdicts = claims.rows.set_index("the text says").verdict
    assert verdicts["all_reduce with SUM sums the gradients of all ranks"] == UNTESTABLE
    assert verdicts["reading .grad immediately after backward() may give incomplete or stale values"] == FAILS


def test_random_numbers_of_a_model_are_drawn_alike(measure: Measure, tmp_path: Path) -> None:
    """A model with dropout gives one gradient again and again, and the four ways to two losses agree."""
    (tmp_path / "conf" / "workload").mkdir(parents=True)
    (tmp_path / "conf" / "workload" / "dropping.yaml").write_text(DROPPING)
    (tmp_path / "conf" / "dropping.py").write_text(BUILD)
    rows = measure(
        *("--config-dir", str(tmp_path / "conf"), "workload=[dropping]", "reduction=[mean]", "iterations=1", "drift.steps=2"),
        *("probe=[several_losses,repeatability]", "probe.repeatability.runs=20", "probe.repeatability.orders=5"),
    ).observations
    again = rows[rows.setting.isin(("in one process", "across processes")) & (rows.quantity == "distinct")]
    assert (again.value == 1).all()
    assert (rows[(rows.quantity == "relative_l2") & rows.setting.str.contains("by hand")].value < 1e-6).all()


DROPPING = """
dropping:
  _target_: harness.axes.workload.base.Workload
  model: {_target_: dropping.build, _partial_: true}
  loss: {_target_: torch.nn.CrossEntropyLoss, _partial_: true}
  data: {_target_: harness.axes.workload.digits.load_digits, _partial_: true}
"""
BUILD = """
from torch import nn


def build():
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
"""


def test_a_case_that_no_fault_can_strike_is_skipped(measure: Measure) -> None:
    run = measure(
        *("workload=[mlp_digits]", "reduction=[sum]", "aggregation=[local]", "fault=[dropped_rank,dropped_input,alias]"),
        *("fault.dropped_input.sample=99", "iterations=1", "warm_up=0"),
    )
    reasons = run.cases.set_index("fault").reason
    assert "this aggregation sums nothing" in reasons["dropped_rank"]
    assert "rank 0 has 32 samples, and no sample 99" in reasons["dropped_input"]
    assert reasons["alias"] == ""
