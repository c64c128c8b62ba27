"""The three stories: verdicts of real runs, and each verdict with the opposite planted in the measurement."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.report import render
from harness.report.frame import Run, load_run
from harness.report.staleness import reads
from harness.report.stories import claims, gradient_sums, tell, unequal_derivatives
from harness.report.stories import reduction_modes as reduction_modes_story
from harness.report.stories.claims import FAILS, HOLDS, UNTESTABLE, Claim, judge
from harness.schema.config import STORIES as STORY_NAMES
from harness.schema.record import CASE
from tests.conftest import Finished
from tests.running import ROOT, launch
from tests.synthetic import make_run, steps

Plant = Callable[[Run], Run]


def observe(probe: str, value: float, quantity: str, subject: str = "", setting: str = "") -> Plant:
    """Observations of a probe with another value."""

    def plant(run: Run) -> Run:
        rows = run.observations.copy()
        hit = (rows.probe.astype(str) == probe) & (rows.quantity == quantity)
        hit &= rows.subject.astype(str).str.contains(subject, regex=False) & rows.setting.str.contains(setting, regex=False)
        assert hit.any()
        rows.loc[hit, "value"] = value
        return run.with_frames(observations=rows)

    return plant


def compare(**changed: float) -> Plant:
    """Every comparison of two modes with other metrics."""
    return discrepancies(True, changed)


def against(**changed: float) -> Plant:
    """Every distance from a reference with other metrics."""
    return discrepancies(False, changed)


def discrepancies(of_modes: bool, changed: dict[str, float]) -> Plant:
    def plant(run: Run) -> Run:
        rows = run.discrepancies.copy()
        for metric, value in changed.items():
            rows.loc[rows.against.str.startswith(CASE) == of_modes, metric] = value
        return run.with_frames(discrepancies=rows)

    return plant


def drift(run: Run) -> Run:
    """Losses that drift apart."""
    return run.with_frames(drifts=run.drifts.assign(loss=run.drifts.loss * 2))


def both(*plants: Plant) -> Plant:
    def plant(run: Run) -> Run:
        for one in plants:
            run = one(run)
        return run

    return plant


APART = compare(max_abs=0.0316, relative_l2=0.2)
STALE = both(observe("staleness", 7, "stale"), observe("staleness", 0, "fresh"))
FRESH = both(observe("staleness", 0, "stale"), observe("staleness", 0, "torn"))
OPPOSITE: dict[str, dict[str, Plant]] = {
    "reduction_modes": {
        "reduction = none and one-by-one": APART,
        "reduction = sum, its gradient": compare(max_abs=0.0),
        "(ours) sum and avg do so": APART,
        "the two pairs differ": APART,
        "they differ because cross-entropy": APART,
        "sum and avg only approximate": APART,
        "it may be due to retain_graph": APART,
        "the gradient of sum always equals": APART,
        "Adam accounts": observe("loss_scale", 300.0, "parameters, relative_l2"),
        "mean keeps gradients constant": observe("loss_scale", 0.5, "relative_l2", setting="twice, mean"),
        "(ours) the first sample's": compare(max_abs=0.5),
        "(asked)": drift,
    },
    "gradient_sums": {
        "reading .grad immediately": STALE,
        "complex graphs": STALE,
        "for CPU computations": STALE,
        "asynchronous operations": FRESH,
        "waiting for them": STALE,
        "all_reduce() aggregates": STALE,
        "two losses summed": observe("several_losses", 0.5, "relative_l2"),
        "this is fundamentally different": observe("several_losses", 0.5, "relative_l2"),
        "all_reduce with SUM sums": observe("sum_over_ranks", 0.5, "relative_l2 from the sum over ranks"),
        "and the sum, as it is": observe("sum_over_ranks", 1.0, "scale against the mean over ranks"),
        "(ours) dividing it": against(relative_l2=1e-8),
        "(asked)": observe("several_losses", 100.0, "loss"),
    },
    "unequal_derivatives": {
        "example 1 runs": observe("text_examples", 0, "raises"),
        "example 1: equal calls": observe("text_examples", 2, "distinct"),
        "example 2": observe("text_examples", 2, "distinct"),
        "example 3": observe("text_examples", 1.0000001, "second call over first"),
        "the order of the forward sum": observe("float_sums", 200, "distinct"),
        "floating-point addition": observe("float_sums", 0, "share that differs"),
        "adding numbers": observe("float_sums", 1, "result"),
        "gradients of identical batches": observe("repeatability", 3, "distinct", setting="in one process"),
        "the order of summation": observe("repeatability", 1, "distinct"),
        "the differences are minuscule": observe("repeatability", 1e-8, "relative_l2"),
        "seeding increases": observe("repeatability", 50, "distinct"),
        "seeding does not solve": observe("repeatability", 1, "distinct"),
        "these variations can never": observe("repeatability", 3, "distinct", setting="across processes"),
        "binary_cross_entropy_with_logits": observe(
            "saturation", 2.0, "largest relative error of the gradient", setting="with_logits"
        ),
        "anomaly detection finds": observe("anomaly", 0, "raises"),
        "and large gradients": observe("anomaly", 1, "raises"),
        "averaging runs": both(observe("averaging", 1.0, "loss, one order"), observe("averaging", 2.0, "loss, another order")),
        "(ours) averaging brings": observe("averaging", 0, "relative_l2 from float64", setting="batch orders"),
        "(asked)": observe("repeatability", 100.0, "loss"),
    },
}
"""Story to the beginning of a claim to a measurement that says the opposite."""
STORIES = {"reduction_modes": reduction_modes_story, "gradient_sums": gradient_sums, "unequal_derivatives": unequal_derivatives}
SEEN = {
    "reduction_modes": [
        *(HOLDS, FAILS, HOLDS, FAILS, FAILS, FAILS, FAILS),
        *(HOLDS, UNTESTABLE, HOLDS, HOLDS, UNTESTABLE, HOLDS, FAILS),
    ],
    "gradient_sums": [
        *(FAILS, FAILS, UNTESTABLE, HOLDS, UNTESTABLE, HOLDS, HOLDS, HOLDS),
        *(HOLDS, FAILS, HOLDS, FAILS, FAILS, FAILS),
    ],
    "unequal_derivatives": [
        *(FAILS, FAILS, FAILS, FAILS, FAILS, HOLDS, HOLDS, FAILS, HOLDS, FAILS, FAILS),
        *(HOLDS, HOLDS, HOLDS, UNTESTABLE, UNTESTABLE, HOLDS, FAILS, HOLDS, FAILS, FAILS),
    ],
}
"""On two CPU ranks, claim by claim."""
FLIPS = [(story, words) for story, plants in OPPOSITE.items() for words in plants]


Runs = dict[str, Finished]


@pytest.fixture(scope="session")
def runs(reduction_modes: Finished, gradient_sums: Finished, unequal_derivatives: Finished) -> Runs:
    """Return the run of each story."""
    return {"reduction_modes": reduction_modes, "gradient_sums": gradient_sums, "unequal_derivatives": unequal_derivatives}


@pytest.fixture(params=STORIES)
def told(request: pytest.FixtureRequest, runs: Runs) -> tuple[str, Finished]:
    """Each story with its run."""
    return request.param, runs[request.param]


def claim_of(story: str, words: str) -> Claim:
    (claim,) = (claim for claim in STORIES[story].CLAIMS if claim.words.startswith(words))
    return claim


@pytest.mark.full
@pytest.mark.parametrize("story", STORIES)
def test_verdicts_of_a_whole_experiment(story: str, tmp_path: Path) -> None:
    done = launch(f"experiment={story}", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / story / "latest")
    verdicts = {claim.words: judge(claim, run).verdict for claim in STORIES[story].CLAIMS}
    assert verdicts == dict(zip(verdicts, SEEN[story], strict=True))
    assert f"Claims: {STORIES[story].TITLE}" in done.stdout
    if story == "gradient_sums":
        counted = reads(run.observations[run.observations.probe.astype(str) == "staleness"])
        assert (counted.trials >= 200).all()
        assert (counted[counted.safe & (counted.setting == "natural")].trials >= 1000).all()


def test_verdicts_of_a_run_on_two_cpu_ranks(told: tuple[str, Finished]) -> None:
    story, finished = told
    verdicts = {claim.words: judge(claim, finished.run).verdict for claim in STORIES[story].CLAIMS}
    assert verdicts == dict(zip(verdicts, SEEN[story], strict=True))
    assert all(judge(claim, finished.run).evidence for claim in STORIES[story].CLAIMS)
    assert f"Claims: {STORIES[story].TITLE}" in finished.output


@pytest.mark.parametrize(("story", "words"), FLIPS)
def test_a_verdict_flips_with_the_measurement(story: str, words: str, runs: Runs) -> None:
    run = runs[story].run
    claim = claim_of(story, words)
    assert {judge(claim, run).verdict, judge(claim, OPPOSITE[story][words](run)).verdict} == {HOLDS, FAILS}


def test_the_stories_of_the_report_are_those_of_the_configuration() -> None:
    assert {"", *STORIES} == set(STORY_NAMES)
    assert {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} >= set(STORIES)


def test_every_verdict_has_its_opposite_planted(told: tuple[str, Finished]) -> None:
    story, finished = told
    tested = [claim for claim in STORIES[story].CLAIMS if judge(claim, finished.run).verdict != UNTESTABLE]
    assert len(tested) == len(OPPOSITE[story])


def test_algorithms_that_vary_are_seen(unequal_derivatives: Finished) -> None:
    """As on a GPU: ten patterns by default, one with deterministic algorithms, and the other way round."""
    claim = claim_of("unequal_derivatives", "non-deterministic algorithms")
    vary = observe("repeatability", 10, "distinct", setting="default algorithms")
    run = vary(unequal_derivatives.run)
    assert judge(claim, run).verdict == HOLDS
    still = observe("repeatability", 10, "distinct", setting="deterministic algorithms")
    assert judge(claim, still(run)).verdict == FAILS


@pytest.mark.parametrize(("orders", "threads", "verdict"), [(1, 1, FAILS), (2, 1, HOLDS), (1, 2, HOLDS), (2, 2, HOLDS)])
def test_batch_orders_or_thread_counts_show_that_summation_order_matters(
    orders: int, threads: int, verdict: str, tmp_path: Path
) -> None:
    rows = [
        {"probe": "repeatability", "subject": "mlp_digits", "setting": setting, "quantity": quantity, "value": value}
        for setting, distinct in (("batch orders", orders), ("thread counts", threads))
        for quantity, value in (("runs", 9.0), ("distinct", float(distinct)), ("relative_l2", 1e-8 * (distinct > 1)))
    ]
    run = load_run(make_run(tmp_path, steps(0.01), "workload=[mlp_digits]", "reduction=[mean]").path)
    claim = claim_of("unequal_derivatives", "the order of summation")
    assert judge(claim, run.with_frames(observations=pd.DataFrame(rows))).verdict == verdict


def test_what_was_not_measured_is_not_judged(smoke: Finished) -> None:
    config = replace(smoke.run.config, story="reduction_modes")
    run = replace(smoke.run, config=config, cases=smoke.run.cases[:0]).with_frames(discrepancies=smoke.run.discrepancies[:0])
    for story, module in STORIES.items():
        told = replace(run, config=replace(config, story=story))
        verdicts = {judge(claim, told).verdict for claim in module.CLAIMS}
        assert verdicts == {UNTESTABLE}
        assert len(tell(told)) == 1
    assert tell(smoke.run) == []


def test_what_is_no_number_is_not_judged(reduction_modes: Finished) -> None:
    """Gradients of NaN are no evidence; losses of NaN have drifted as far apart as can be."""
    run = reduction_modes.run
    nan = compare(max_abs=math.nan, relative_l2=math.nan)(run)
    for words in ("reduction = none and one-by-one", "the two pairs differ", "they differ because", "(ours) the first"):
        assert judge(claim_of("reduction_modes", words), nan).verdict == UNTESTABLE
    diverged = run.with_frames(drifts=run.drifts.assign(loss=math.nan))
    assert judge(claim_of("reduction_modes", "(asked)"), diverged).verdict == HOLDS
    assert tell(nan)


def test_one_loss_that_is_no_number_is_not_averaged_away(unequal_derivatives: Finished) -> None:
    run = unequal_derivatives.run
    first = run.observations.index[run.observations.quantity == "loss, one order"][0]
    claim = claim_of("unequal_derivatives", "averaging runs")
    assert judge(claim, run).verdict != UNTESTABLE
    nan = run.with_frames(
        observations=run.observations.assign(value=run.observations.value.mask(run.observations.index == first))
    )
    assert judge(claim, nan).verdict == UNTESTABLE


@pytest.mark.parametrize("kept", [["none", "sum"], ["none", "one_by_one"], ["sum_then_divide", "one_by_one_forward"], ["mean"]])
def test_a_part_of_a_run_is_judged_by_what_it_has(reduction_modes: Finished, kept: list[str]) -> None:
    run = reduction_modes.run
    cases = run.cases[run.cases.reduction.isin(kept)]
    ids = set(cases.case_id)
    rows = run.discrepancies[run.discrepancies.case_id.astype(str).isin(ids)]
    rows = rows[rows.against.str.removeprefix(CASE).isin(ids) | ~rows.against.str.startswith(CASE)]
    drifts = run.drifts[run.drifts.case_id.astype(str).isin(ids) & run.drifts.against.str.removeprefix(CASE).isin(ids)]
    part = replace(run, cases=cases).with_frames(discrepancies=rows, drifts=drifts)
    judged = {claim.words: judge(claim, part) for claim in reduction_modes_story.CLAIMS}
    assert not any("NaN" in one.evidence for one in judged.values())
    alias = next(one for words, one in judged.items() if words.startswith("(ours) the first"))
    assert alias.verdict == UNTESTABLE
    assert tell(part)


def test_whether_a_fault_matters_is_asked_where_there_is_nothing_else(reduction_modes: Finished) -> None:
    run = reduction_modes.run
    cases = run.cases[run.cases.fault == "alias"]
    drifts = run.drifts[run.drifts.case_id.astype(str).isin(set(cases.case_id))]
    verdict = judge(claim_of("reduction_modes", "(asked)"), replace(run, cases=cases).with_frames(drifts=drifts))
    assert re.search(r"with fault=alias have parameters up to 7\.83e-03 apart", verdict.evidence), verdict.evidence


def test_exact_zeros_and_the_prediction_of_the_alias(reduction_modes: Finished) -> None:
    tables = {table.title: table.rows for table in tell(reduction_modes.run)}
    for fault in ("none", "alias"):
        lines = tables[f"Maximum discrepancy between reduction = ..., fault={fault}"].set_index("reduction =")
        settings = [column for column in lines.columns if column != "the text"]
        assert len(settings) == 6, "two precisions, three batch sizes"
        assert (lines.loc[["none and one-by-one", "sum, its loss divided, and avg"], settings] == "0").all(axis=None)
        zero = lines.loc["sum and avg", settings] == "0"
        assert set(zero[zero].index) == {"fp32, 64", "fp64, 64"}, "the text divides the gradient: exact for powers of two"
        largest = pd.to_numeric(lines.loc["none and sum", settings])
        assert (largest > 0.01).all() if fault == "alias" else (largest < 1e-6).all()
    alias = tables["The alias, measured and predicted"]
    assert (alias.measured.str[:13] == alias.predicted.str[:13]).all()


def test_a_claim_is_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A narrow terminal shows other tables than report.md, and the same verdicts."""
    run_dir = make_run(tmp_path, steps(0.01), "workload=[mlp_digits]", "reduction=[mean]", "story=gradient_sums")
    judged: list[str] = []
    original = claims.judge

    def counting(claim: Claim, run: Run) -> claims.Judged:
        judged.append(claim.words)
        return original(claim, run)

    monkeypatch.setattr(claims, "judge", counting)
    monkeypatch.setattr(render, "_UNBOUNDED", 100)
    render.show([run_dir.path])
    title = f"Claims: {gradient_sums.TITLE}"
    assert title in capsys.readouterr().out and title in (run_dir.report / "report.md").read_text()
    assert judged == [claim.words for claim in gradient_sums.CLAIMS]
