"""Diagnoses in real gloo worlds: planted faults, clean cases, single causes, memory, and what a run shows of them."""

import pytest

from harness.schema.record import CLEAN
from tests.conftest import Measure, shown
from tests.worlds.diagnosis import FAULTS
from tests.worlds.pool import Pool


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.full)])
@pytest.mark.parametrize("ranks", [2, 3])
def test_every_planted_fault_is_found(ranks: int, times: int, worlds: Pool) -> None:
    rows = worlds.run(ranks, "tests.worlds.diagnosis:rows", list(range(times * len(FAULTS))), "fault")
    assert {row["fault"] for row in rows} == set(FAULTS)
    assert [row for row in rows if not row["right"]] == []


@pytest.mark.parametrize("ranks", [3])
def test_nothing_is_found_where_nothing_is_wrong(ranks: int, worlds: Pool) -> None:
    rows = worlds.run(ranks, "tests.worlds.diagnosis:rows", list(range(16)), "clean")
    assert [row for row in rows if row["verdict"] not in CLEAN] == []
    assert len({row["verdict"] for row in rows}) > 1
    replayed = [row["replayed"] for row in rows if row["replayed"] == row["replayed"]]
    assert len(replayed) > 4
    assert set(replayed) == {1.0}


@pytest.mark.parametrize("ranks", [4])
def test_each_cause_planted_singly_takes_the_budget(ranks: int, worlds: Pool) -> None:
    causes = worlds.run(ranks, "tests.worlds.budget:budgets")
    assert len(causes) == 5
    for cause, found in causes.items():
        shares = found["steps"]
        assert shares[cause] > 0.95, (cause, shares)
        assert abs(shares["unexplained"]) <= 0.01
        assert sum(shares.values()) == pytest.approx(1)
        assert found["proved"]
    verdicts = {cause: found["verdict"] for cause, found in causes.items()}
    assert verdicts["summation order"] == "order"
    assert verdicts["normalization"] == "weighting"
    assert verdicts["precision of communication"] == "precision"


@pytest.mark.full
@pytest.mark.alone
def test_a_diagnosis_takes_less_than_four_gradients_of_memory() -> None:
    with Pool() as its_own:
        taken = its_own.run(2, "tests.worlds.diagnosis_memory:peaks")
    assert taken["diagnosis"] < 4


def test_a_run_leads_with_its_verdicts(measure: Measure) -> None:
    asked = ("workload=[mlp_digits]", "reduction=[sum,one_by_one]", "fault=[none,dropped_rank,alias]", "diagnose=true")
    finished = shown(measure(*asked, "iterations=2"))
    lines = finished.output.splitlines()
    first = next(line for line in lines if line.startswith("- "))
    assert first.startswith("- weighting (certain): ")
    assert "rank 0 is lost" in finished.output
    assert "Why: mlp_digits" in finished.output
    run = finished.run
    verdicts = dict(zip(run.diagnoses.case_id.astype(str), run.diagnoses.cause, strict=True))
    expected = {"none": "rounding", "dropped_rank": "lost_rank", "alias": "alias"}
    for case in run.cases.itertuples():
        one_pass = case.fault == "alias" and case.reduction == "sum"
        assert verdicts[str(case.case_id)] == ("rounding" if one_pass else expected[str(case.fault)])
    lost = run.weights[run.weights.case_id.isin([name for name, cause in verdicts.items() if cause == "lost_rank"])]
    assert lost[lost["rank"] == 0].weight.abs().max() < 1e-9
    assert (lost[lost["rank"] == 1].weight / lost[lost["rank"] == 1].expected - 1).abs().max() < 1e-9
    assert set(run.diagnoses.summation_orders) == {"0 + 1"}, "two ranks, one order"
    assert (run.budget.groupby("case_id").share.sum() - 1).abs().max() < 1e-6
    assert set(run.floors.parameter) == set(run.discrepancies.parameter)
    assert (run.floors[["permutation", "probable", "worst", "kernels"]] >= 0).all().all()
    assert (run.path / "report" / "budget.png").stat().st_size > 5000
