"""The line on cost: a ratio where all intervals of the run together allow it, and otherwise what the samples leave open."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report.answer import answer
from harness.report.cost import cost
from harness.report.frame import load_run
from harness.report.step_ratio import ITERATIONS, StepRatio, widest
from harness.report.timing import Timing, timing
from harness.schema.case import Case
from tests.synthetic import Seconds, make_run

TWO = ("workload=[mlp_digits]", "reduction=[mean,sum]")
ROUNDS = ("order=interleaved", "rounds=10", "iterations=50")
CASES, DRAWS = 6, 20


def of_reduction(medians: Mapping[str, float], iterations: int, noise: float = 0.05) -> Seconds:
    """Seconds of a step by reduction; launches, and tenths of them, differ by half, and cases share that."""

    def seconds(case: Case, launch: int) -> dict[tuple[str, str], np.ndarray]:
        random = np.random.default_rng([launch, *case.reduction.encode()])
        shared = np.random.default_rng(launch).uniform(1, 1.5, 10)
        step = medians[case.reduction] * np.repeat(shared, -(-iterations // 10))[:iterations, None]
        return {("host", "step"): step * np.exp(noise * random.standard_normal((iterations, 2)))}

    return seconds


def cost_line(folder: Path, seconds: Seconds, *overrides: str) -> str:
    made = {"iterations": lambda case, launch: len(seconds(case, launch)["host", "step"])}
    run = load_run(make_run(folder, seconds, *TWO, *overrides, **made).path)
    timed = timing(run)
    return answer(run, cost(run, timed), timed)[1]


def test_rounds_in_turn_tell_a_doubled_step_and_no_equal_one(tmp_path: Path) -> None:
    doubled = cost_line(tmp_path / "doubled", of_reduction({"mean": 0.01, "sum": 0.02}, 50), *ROUNDS)
    assert re.search(r" ms with sum, (1\.9\d|2|2\.0\d) times as much \[1\.9\d?, 2\.[01]\d?\] ", doubled)
    assert doubled.endswith("(2 ranks, slowest rank, median of 50; 95 %, from 10 visits).")
    equal = cost_line(tmp_path / "equal", of_reduction({"mean": 0.01, "sum": 0.01}, 50), *ROUNDS)
    assert equal.startswith("Cost: no difference was seen: on mlp_digits a step takes ")
    assert "times as much" not in equal and "ratios from 0.9" in equal and equal.endswith("more rounds narrow that.")


def test_launches_are_the_units_where_there_are_several(tmp_path: Path) -> None:
    seconds = of_reduction({"mean": 0.01, "sum": 0.02}, 10)
    assert "median of 50 in 5 launches; 95 %, from 5 launches)" in cost_line(tmp_path / "five", seconds, "launches=5")
    two = cost_line(tmp_path / "two", seconds, "launches=2")
    assert "2 launches are too few to tell whether they differ (2 ranks" in two and "times as much" not in two


def test_one_visit_tells_what_no_change_of_speed_explains(tmp_path: Path) -> None:
    four = cost_line(tmp_path / "four", of_reduction({"mean": 0.01, "sum": 0.04}, 10))
    assert " times as much [2." in four and four.endswith("95 %, from the iterations of one visit to each case).")
    twice = cost_line(tmp_path / "twice", of_reduction({"mean": 0.01, "sum": 0.02}, 10))
    assert "ratios from 1." in twice and "fit the samples, of which up to 2 may be a change of the machine's speed" in twice
    assert "times as much" not in twice
    three = cost_line(tmp_path / "three", of_reduction({"mean": 0.01, "sum": 0.04}, 3), "iterations=3")
    assert "; 3 iterations are too few to tell whether they differ (2 ranks" in three


def test_one_case_has_no_ratio(tmp_path: Path) -> None:
    line = cost_line(tmp_path, of_reduction({"mean": 0.01}, 10), "reduction=[mean]")
    assert line.endswith(" ms with mean (2 ranks, slowest rank, median of 10).")


@pytest.mark.parametrize("visits", [1, 5])
def test_the_extremes_of_many_equal_cases_are_no_difference(visits: int) -> None:
    """One false claim in 20 runs is expected; more than 4 have a chance of 0.3 %."""
    random = np.random.default_rng(0)
    claimed = [_widest(np.exp(0.3 * random.standard_normal((CASES, 20))), visits).claimed for _ in range(DRAWS)]
    assert sum(claimed) <= 4
    longer = np.array([3.0] + [1.0] * (CASES - 1))[:, None]
    found = [_widest(longer * np.exp(0.02 * random.standard_normal((CASES, 20))), visits) for _ in range(DRAWS)]
    assert all(
        one.claimed and one.dear == "0" and one.low < 3 < one.high and one.pairs == CASES * (CASES - 1) // 2 for one in found
    )


def test_more_iterations_of_one_visit_do_not_narrow_it() -> None:
    """A machine that is 2.5 times as slow during one of two equal cases, for all iterations but one of five hundred."""
    slow = np.full(500, 2.5)
    slow[100] = 1.0
    found = _widest(np.stack([slow, np.ones(500)]), 1)
    assert (found.of, found.low, found.high, found.claimed) == (ITERATIONS, 1.0, 2.5, False)


def test_a_difference_that_every_launch_shows_is_seen_whatever_the_medians_say() -> None:
    """B is a tenth faster in each of five launches; A has most of its iterations in the fast one, and the lower median."""
    rows = [("A", 0, 0.5, 1000), *(("A", launch, 1.0, 10) for launch in range(1, 5))]
    rows += [("B", launch, 0.9 * step, 10) for _, launch, step, _ in rows]
    frame = pd.DataFrame([(case, launch, 0, step) for case, launch, step, count in rows for _ in range(count)])
    frame.columns = pd.Index(["case_id", "launch", "visit", "step_s"])
    frame["step_s"] *= np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(frame)))
    assert frame[frame.case_id == "A"].step_s.median() < frame[frame.case_id == "B"].step_s.median()
    empty = pd.DataFrame()
    found = widest(Timing(phases=empty, ranks=empty, cases=empty, steps=frame), pd.Series("mlp", ["A", "B"]))
    assert found is not None
    assert (found.cheap, found.dear, found.claimed) == ("B", "A", True)
    assert found.low < 1 / 0.9 < found.high


def _widest(steps: np.ndarray, visits: int) -> StepRatio:
    """Widest ratio of cases whose steps are [cases, iterations] seconds."""
    cases, iterations = np.indices(steps.shape)
    frame = pd.DataFrame({"case_id": cases.ravel().astype(str), "launch": 0, "step_s": steps.ravel()})
    frame["visit"] = iterations.ravel() * visits // steps.shape[1]
    empty = pd.DataFrame()
    found = widest(Timing(phases=empty, ranks=empty, cases=empty, steps=frame), pd.Series("mlp", sorted(set(frame.case_id))))
    assert found is not None
    return found
