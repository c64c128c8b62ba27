"""Statistics of series whose truth is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from harness.report.__main__ import main
from harness.report.breakdown import breakdown_table, straggler_table
from harness.report.caution import cautions, remarks, short
from harness.report.cost import cost, cost_table
from harness.report.frame import Run, load_run
from harness.report.render import build, write
from harness.report.statistics import Blocks, outliers, summarize, trend, two_modes
from harness.report.times import times_of
from harness.report.timing import timing
from harness.schema.case import Case
from tests.bench.scale import make_large
from tests.synthetic import make_run, samples, steps

DRAWS = 200
ONE_CASE = ("workload=[mlp_digits]", "reduction=[mean]")


def one_launch(count: int) -> Blocks:
    return Blocks(np.zeros(count, np.int64), np.zeros(count, np.int64))


def correlated(random: np.random.Generator, count: int, share: float) -> np.ndarray:
    """Each value resembles the one before it."""
    values = random.standard_normal(count)
    for place in range(1, count):
        values[place] = share * values[place - 1] + np.sqrt(1 - share**2) * values[place]
    return values


def test_figures_of_a_series() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    (summary,) = summarize(values[:, None], one_launch(5))
    assert (summary.median, summary.iqr, summary.min, summary.count, summary.launches) == (3.0, 2.0, 1.0, 5, 1)
    assert (summary.p95, summary.p99) == (pytest.approx(80.8), pytest.approx(96.16))
    assert summary.outliers == 1
    assert summary.low <= summary.median <= summary.high


def test_an_outlier_is_counted_and_stays() -> None:
    values = np.array([*np.linspace(1, 2, 20), 50.0])
    assert outliers(values) == 1
    assert outliers(values[:-1]) == 0
    (summary,) = summarize(values[:, None], one_launch(21))
    assert summary.count == 21
    assert summary.p99 > 40


@pytest.mark.parametrize(("share", "least"), [(0.0, 0.90), (0.6, 0.75)])
def test_the_interval_holds_the_median_of_what_was_drawn_from(share: float, least: float) -> None:
    """95 % are aimed at; a bootstrap of few neighbours that resemble each other falls short, and of single values further."""
    random = np.random.default_rng(0)
    series = 10 + np.stack([correlated(random, 50, share) for _ in range(DRAWS)], axis=1)
    covered = np.mean([found.low <= 10 <= found.high for found in summarize(series, one_launch(50))])
    assert covered >= least


@pytest.mark.parametrize("unit", ["launch", "visit"])
def test_launches_and_visits_are_drawn_whole(unit: str) -> None:
    """Values that differ by launch or by visit, and hardly inside: single values would give an interval far too narrow."""
    random, number = np.random.default_rng(1), np.repeat(np.arange(5), 20)
    shifts = random.standard_normal((5, DRAWS))
    series = 10 + shifts[number] + 0.01 * random.standard_normal((100, DRAWS))
    blocks = Blocks(number, number * 0) if unit == "launch" else Blocks(number * 0, number)
    found = summarize(series, blocks)
    assert np.mean([one.low <= 10 <= one.high for one in found]) >= 0.85
    assert found[0].launches == (5 if unit == "launch" else 1)


def test_several_launches_have_the_median_of_their_medians() -> None:
    number = np.repeat([0, 1, 2], [3, 3, 9])
    (found,) = summarize(np.array([1.0, 2, 3, 4, 5, 6, *[9.0] * 9])[:, None], Blocks(number, number * 0))
    assert (found.median, found.count, found.launches) == (5.0, 15, 3)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda random, count: 10 + random.standard_normal(count),
    "heavy tails": lambda random, count: 30 + random.standard_t(3, count),
    "skewed": lambda random, count: 1 + random.exponential(size=count),
    "neighbours alike": lambda random, count: 10 + correlated(random, count, 0.6),
}


@pytest.mark.parametrize("count", [10, 30, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_little_is_flagged_where_nothing_is(shape: str, count: int) -> None:
    random = np.random.default_rng(2)
    drawn = [SHAPES[shape](random, count) for _ in range(DRAWS)]
    assert np.mean([trend(values) != 0 for values in drawn]) <= 0.10
    assert np.mean([two_modes(values) for values in drawn]) <= 0.10


def test_a_trend_is_told_with_its_size() -> None:
    random = np.random.default_rng(3)
    rising = [10 + 5 * np.linspace(-0.5, 0.5, 50) + random.standard_normal(50) for _ in range(DRAWS)]
    found = np.array([trend(values) for values in rising])
    assert (found > 0).mean() >= 0.9
    assert np.median(found[found > 0]) == pytest.approx(0.5, rel=0.1)
    assert trend(rising[0][::-1]) < 0
    assert trend(np.linspace(1.0, 1.01, 50)) == 0, "sure, but nothing to speak of"
    assert trend(np.zeros(50)) == 0


def test_two_modes_are_told() -> None:
    random = np.random.default_rng(4)
    drawn = [10 + random.standard_normal(60) + 6 * (random.random(60) < 0.5) for _ in range(DRAWS)]
    assert np.mean([two_modes(values) for values in drawn]) >= 0.9
    assert not two_modes(np.ones(60))
    assert not two_modes(1.0 + np.spacing(1.0) * random.integers(0, 4, 60)), "times that rounding alone tells apart"


def delayed(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
    """Rank 1 enters `aggregate` 20 ms after the others, and all leave it together, 4 ms later."""
    arrival = np.tile([0.0, 0.020, 0.005], (20, 1)) + np.arange(20)[:, None]
    aggregate = 0.024 - (arrival - arrival.min(axis=1, keepdims=True))
    step = np.tile([0.030, 0.034, 0.032], (20, 1))
    return {("host", "aggregate"): aggregate, ("host", "step"): step, ("arrival", "aggregate"): arrival}


def test_waiting_for_the_last_rank_is_told_from_the_transfer() -> None:
    case_id = "a"
    times = times_of(samples(case_id, 0, delayed(Case(*"abcdefg"), 0)))
    assert times.phases["host", "skew"][0] == pytest.approx([0.020, 0.0, 0.015])
    assert times.phases["host", "transfer"][0] == pytest.approx([0.004, 0.004, 0.004])
    assert times.slowest["host", "skew"] == pytest.approx([0.020] * 20)
    assert ("arrival", "aggregate") not in times.slowest


def test_the_straggler_is_named(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, delayed, *ONE_CASE, ranks=3).path)
    timed = timing(run)
    (row,) = straggler_table(run, timed).to_dict("records")
    assert row["last to aggregate"] == "rank 1 in 100%"
    assert row["waits the longest, ms"] == "rank 0: 20.0"
    assert row["slowest step"] == "rank 1 in 100%"
    (phases,) = breakdown_table(cost(run, timed), timed).to_dict("records")
    assert (phases["of it skew, ms"], phases["of it transfer, ms"]) == ("20.0", "4.00")
    assert "Stragglers: mlp_digits" in write(build(run.path)).read_text()


def test_exposed_communication_and_overlap(tmp_path: Path) -> None:
    """A step of 30 ms, 22 ms without communication, which alone takes 10 ms: 8 ms are exposed, a fifth is hidden."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        took = {"step": 0.030, "step_alone": 0.022, "collective_alone": 0.010}
        return {("host", phase): np.full((20, 2), value) for phase, value in took.items()}

    run = load_run(make_run(tmp_path, seconds, *ONE_CASE).path)
    timed = timing(run)
    exposed = timed.phases[timed.phases.phase == "exposed"]
    assert exposed["median"].tolist() == pytest.approx([0.008])
    assert timed.cases.overlap.tolist() == pytest.approx([0.2])
    (row,) = breakdown_table(cost(run, timed), timed).to_dict("records")
    assert (row["exposed, ms"], row["hidden communication"]) == ("8.00", "20%")


def test_on_a_device_its_own_clock_counts() -> None:
    took = {
        ("host", "aggregate"): 0.001,
        ("host", "step"): 0.002,
        ("cuda_event", "aggregate"): 0.010,
        ("cuda_event", "step"): 0.030,
    }
    arrival = np.tile([0.0, 0.004], (5, 1))
    table = {key: np.full((5, 2), value) for key, value in took.items()} | {("arrival", "aggregate"): arrival}
    times = times_of(samples("a", 0, table))
    assert times.clock == "cuda_event"
    assert times.phases["cuda_event", "transfer"][0] == pytest.approx([0.006, 0.010])


def test_device_times_without_launches_stand_beside_those_with_them(tmp_path: Path) -> None:
    """One mode has them, in 17 of 20 iterations, and one has not; both are judged by what a user waits for."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        took = {("host", "step"): 0.001, ("cuda_event", "step"): 0.002, ("cuda_event", "step_alone"): 0.0019}
        table = {key: np.full((20, 2), value) for key, value in took.items()}
        if case.reduction == "sum":
            return table
        held = {"step": 0.0005, "step_alone": 0.0002}
        early = np.where(np.arange(20) < 3, np.nan, 1.0)[:, None] * np.ones((1, 2))
        return table | {("cuda_queued", phase): value * early for phase, value in held.items()}

    run = load_run(make_run(tmp_path, seconds, "workload=[mlp_digits]", "reduction=[mean,sum]").path)
    timed = timing(run)
    assert set(timed.cases["clock"]) == {"cuda_event"}
    table = cost_table(cost(run, timed), short(cautions(run, timed)))
    steps = [name for name in table if name.startswith("step")]
    assert steps == ["step, device ms", "step, device without launches ms", "step, ms"]
    assert table["step, device without launches ms"].tolist() == ["0.500 [0.500, 0.500]", ""]
    assert table["outliers, device without launches"].tolist() == ["0", ""]
    assert table.caution.tolist() == ["left out 3 of 20", ""]
    phases = breakdown_table(cost(run, timed), timed)
    assert phases["exposed, device ms"].tolist() == ["0.100", "0.100"]
    assert phases["exposed, device without launches ms"].tolist() == ["0.300", ""]
    page = write(build(run.path)).read_text()
    assert "left out (1 case): device times without launches" in page
    assert "when the host has launched the whole step before" in page


def test_a_median_without_an_interval_is_shown_alone(tmp_path: Path) -> None:
    """Visits of 3 and 2 iterations, cut to 2 in the bootstrap: the only number of the clock is the third of the first visit."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        queued = np.where(np.arange(5) == 2, 0.0005, np.nan)[:, None] * np.ones((1, 2))
        return {("cuda_event", "step"): np.full((5, 2), 0.002), ("cuda_queued", "step"): queued}

    run = load_run(make_run(tmp_path, seconds, *ONE_CASE, "order=interleaved", "rounds=2").path)
    timed = timing(run)
    table = cost_table(cost(run, timed), short(cautions(run, timed)))
    assert table["step, device ms"].tolist() == ["2.00 [2.00, 2.00]"]
    assert table["step, device without launches ms"].tolist() == ["0.500"]


@pytest.mark.parametrize(("backend", "warm_up", "cautious"), [("nccl", 0, True), ("nccl", 2, False), ("gloo", 0, False)])
def test_channels_are_connected_in_the_first_iteration(tmp_path: Path, backend: str, warm_up: int, cautious: bool) -> None:
    run = load_run(make_run(tmp_path, steps(0.01), *ONE_CASE, f"warm_up={warm_up}").path)
    run.environment["backend"] = backend
    assert any("connects the channels" in line for line in remarks(run, cautions(run, timing(run)))) == cautious


def test_cautions_in_plain_words(tmp_path: Path) -> None:
    """Launches that differ by half; inside each a trend; other bits in the last."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        rising = np.linspace(1, 2, 25)[:, None] * np.ones((1, 2))
        return {("host", "step"): 0.01 * (1 + launch) * rising}

    bits = {"gradient_sha256": lambda case, launch: str(launch // 2)}
    run = load_run(make_run(tmp_path, seconds, *ONE_CASE, "launches=3", **bits).path)
    found = cautions(run, timing(run))
    assert found.caution.tolist() == ["spread", "trend", "launches differ", "bits differ"]
    assert "trend +6" in short(found).iloc[0]
    lines = remarks(run, found)
    assert any(line.startswith("bits differ (1 case): rank 0's gradient has other bits in another launch") for line in lines)


def test_one_launch_says_so(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, steps(0.01, iterations=40), *ONE_CASE).path)
    found = cautions(run, timing(run))
    assert found.empty
    assert [line.split(":")[0] for line in remarks(run, found)] == ["One launch"]


def test_a_case_that_failed_in_a_later_launch_has_failed(tmp_path: Path) -> None:
    status = {0: "ok", 1: "failed", 2: "ok"}
    made = make_run(tmp_path, steps([0.01] * 3), *ONE_CASE, "launches=3", status=lambda case, launch: status[launch])
    run = load_run(made.path)
    assert (run.cases.status.tolist(), run.launched.status.tolist()) == (["failed"], ["ok", "failed", "ok"])
    assert build(run.path).failed


def test_a_large_run_is_reduced_case_by_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 ranks, 6 cases: no more than one case's samples are held at a time."""
    run = load_run(make_large(tmp_path, ranks=64, cases=6, iterations=10).path)
    held: list[int] = []
    original = type(run).raw_samples

    def counting(self, case_id: str):
        table = original(self, case_id)
        held.append(len(table))
        return table

    monkeypatch.setattr(type(run), "raw_samples", counting)
    timed = timing(run)
    assert held == [64 * 11 * 6] * 6
    assert "samples" not in vars(run), "the frame of all samples was never made"
    assert len(timed.ranks) == 6 * 64
    assert timed.phases.groupby("case_id").size().tolist() == [7] * 6
    written = pd.read_csv(write(build(run.path)).parent / "times.csv")
    assert len(written) == 6 * 7


def test_samples_are_reduced_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs of two cases: timing, price, tables across runs, both sides of a comparison and its A/A runs share them."""
    one, two = (str(make_run(tmp_path, steps(0.01), *ONE_CASE, "sync=[none,barrier]").path) for _ in range(2))
    read: list[str] = []
    original = Run.raw_samples

    def counting(self: Run, case_id: str) -> pa.Table:
        read.append(case_id)
        return original(self, case_id)

    monkeypatch.setattr(Run, "raw_samples", counting)
    counted = {}
    for command in (["show", one, two], ["compare", one, two, "--aa", one], ["check", one, "--max-step-ms", "1000"]):
        read.clear()
        assert main(command) == 0
        counted[command[0]] = len(read)
    assert counted == {"show": 4, "compare": 4, "check": 2}
