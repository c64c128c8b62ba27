"""Comparisons of runs whose truth is known, and how often a verdict is wrong."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.report.__main__ import main
from harness.report.comparison import compare
from harness.report.sides import load_side
from harness.report.verdict import LESS, MORE, SAME, UNCLEAR, fewest_launches, interval, judge, judge_exact
from tests.bench.verdicts import NOISES, simulate
from tests.synthetic import MIB, make_run, read_json, steps

CASES = ("workload=[mlp_digits]", "reduction=[mean,sum]")
FIVE = [0.0100, 0.0101, 0.0099, 0.0102, 0.0098]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Five launches of two cases, each within 2 %."""
    return make_run(tmp_path, steps(FIVE), *CASES, "launches=5", "name=base").path


def run(folder: Path, medians: list[float] | float = FIVE, *overrides: str, **outcome: object) -> Path:
    launches = 1 if isinstance(medians, float) else len(medians)
    asked = overrides or CASES
    return make_run(folder, steps(medians), *asked, f"launches={launches}", "name=new", **outcome).path


def times(factor: float) -> list[float]:
    return [factor * seconds for seconds in FIVE]


def verdicts(base: Path, new: Path, *arguments: str) -> dict[str, Counter[str]]:
    """Metric to its verdicts, through the command."""
    assert main(["compare", str(base), str(new), *arguments]) == 0
    rows = pd.read_csv(new / "report" / "compare.csv")
    return {str(metric): Counter(group.verdict) for metric, group in rows.groupby("metric")}


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, "slower"), (0.8, "faster"), (1.0, "same")])
def test_times(base: Path, tmp_path: Path, factor: float, verdict: str) -> None:
    found = verdicts(base, run(tmp_path, times(factor)))
    assert found["time"] == {verdict: 2}
    assert found["memory"] == found["relative_l2"] == {"same": 2}


def test_the_margin_decides_what_is_the_same(base: Path, tmp_path: Path) -> None:
    new = run(tmp_path)
    assert verdicts(base, new, "--margin", "1%")["time"] == {"unclear": 2}
    assert verdicts(base, new, "--margin", "5%")["time"] == {"same": 2}


def test_memory_and_discrepancy(base: Path, tmp_path: Path) -> None:
    new = run(tmp_path, peak_memory_bytes=lambda case, launch: (120 + launch) * MIB, relative_l2=lambda case, launch: 3e-7)
    found = verdicts(base, new)
    assert found["memory"] == {"more": 2}
    assert found["relative_l2"] == {"further": 2}


def test_one_launch_is_unclear_but_for_what_the_bits_say(base: Path, tmp_path: Path) -> None:
    one, other = run(tmp_path, 0.010), run(tmp_path, 0.030, relative_l2=lambda case, launch: 0.0)
    found = verdicts(one, other)
    assert found["time"] == found["memory"] == {"unclear": 2}
    assert found["relative_l2"] == {"closer": 2}


def test_beyond_a_recorded_spread_one_launch_is_enough(base: Path, tmp_path: Path) -> None:
    one, near, far = run(tmp_path, 0.0100), run(tmp_path, 0.0103), run(tmp_path, 0.0120)
    assert verdicts(one, near, "--aa", str(base))["time"] == {"unclear": 2}
    assert verdicts(one, far, "--aa", str(base))["time"] == {"slower": 2}


def test_several_runs_a_side_add_up(tmp_path: Path) -> None:
    sides = [[str(run(tmp_path, factor * seconds)) for seconds in FIVE] for factor in (1.0, 1.5)]
    assert main(["compare", "--base", *sides[0], "--new", *sides[1]]) == 0
    rows = pd.read_csv(Path(sides[1][-1]) / "report" / "compare.csv")
    assert set(rows.base_launches) == set(rows.new_launches) == {5}
    assert set(rows[rows.metric == "time"].verdict) == {"slower"}


def test_phases_on_request(base: Path, tmp_path: Path) -> None:
    found = verdicts(base, run(tmp_path, times(1.5)), "--phases")
    assert found["time.aggregate"] == found["time.forward"] == {"slower": 2}


def test_what_is_on_one_side_only_and_what_differs_is_said(base: Path, tmp_path: Path) -> None:
    new = run(tmp_path, FIVE, "workload=[mlp_digits]", "reduction=[mean,none]", "iterations=20", "seed=3")
    assert main(["compare", str(base), str(new)]) == 0
    told = read_json(new / "report" / "compare.json")
    assert {(case["reduction"], case["why"]) for case in told["not_compared"]} == {
        ("sum", "in base only"),
        ("none", "in new only"),
    }
    assert {row["key"]: (row["base"], row["new"]) for row in told["differences"]} == {
        "iterations": ("10", "20"),
        "seed": ("0", "3"),
    }
    page = (new / "report" / "compare.md").read_text()
    assert "in base only" in page
    assert "What differs between the sides" in page


def test_cases_are_joined_by_parameters(tmp_path: Path) -> None:
    """Runs with other parameter columns: bucketed alone has bytes; the column of the other run is no reason not to compare."""
    first = run(tmp_path, FIVE, "workload=[mlp_digits]", "reduction=[mean]", "aggregation=[all_reduce,bucketed]")
    second = run(tmp_path, FIVE, "workload=[mlp_digits]", "reduction=[mean]", "aggregation=[all_reduce]")
    compared = compare(load_side([first]), load_side([second]), None, margin=0.1, phases=False)
    assert set(compared.rows.case) == {0}
    assert list(compared.apart.values()) == ["in base only"]


@pytest.mark.parametrize(("minutes", "told"), [(range(0, 10, 2), False), (range(6, 11), True)])
def test_sides_that_were_not_measured_in_turn(base: Path, tmp_path: Path, minutes: range, told: bool) -> None:
    """The launches of one side begin in the first minutes."""
    new = run(tmp_path)
    for path, begun in ((base, range(1, 6)), (new, minutes)):
        noted = {
            "conditions": [{"launch": k, "began": f"2026-01-01T00:{minute:02}:00+00:00"} for k, minute in enumerate(begun)]
        }
        (path / "environment.json").write_text(json.dumps(read_json(path / "environment.json") | noted))
    assert main(["compare", str(base), str(new)]) == 0
    page = (new / "report" / "compare.md").read_text()
    assert ("All launches of one side came before" in page) == told
    assert "What differs" not in page


def test_across_an_axis(tmp_path: Path) -> None:
    first, second = (run(tmp_path, FIVE, *CASES, f"aggregation=[{option}]") for option in ("all_reduce", "bucketed"))
    assert main(["compare", str(first), str(second)]) == 2
    assert verdicts(first, second, "--across", "aggregation")["time"] == {"same": 2}


def test_the_page_escapes_what_it_quotes(base: Path, tmp_path: Path) -> None:
    new = run(tmp_path)
    environment = read_json(new / "environment.json")
    (new / "environment.json").write_text(json.dumps(environment | {"commit": "<b>|x"}))
    assert main(["compare", str(base), str(new)]) == 0
    assert "&lt;b&gt;\\|x" in (new / "report" / "compare.md").read_text()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("reducebench-report: ")
    assert "Traceback" not in said
    return said


def test_wrong_use(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, text = run(tmp_path), str(base)
    other = run(tmp_path, FIVE, "workload=[cnn_digits]", "reduction=[mean]")
    assert "no case in common" in refused(["compare", text, str(other)], capsys)
    assert "stands on both sides" in refused(["compare", text, text], capsys)
    assert "not a run directory" in refused(["compare", text, str(tmp_path / "none")], capsys)
    assert "expected two runs" in refused(["compare", text], capsys)
    assert "expected two runs" in refused(["compare", text, "--new", str(new)], capsys)
    assert "expected per cent" in refused(["compare", text, str(new), "--margin", "0.1"], capsys)
    assert "no such axis" in refused(["compare", text, str(new), "--across", "colour"], capsys)
    assert "2 options" in refused(["compare", text, str(new), "--across", "reduction"], capsys)
    assert "not a run directory" in refused(["compare", text, str(new), "--aa", str(tmp_path)], capsys)


@pytest.mark.parametrize("order", ["order=shuffled", "order=interleaved", "reversed"])
def test_unlike_orders_are_refused(base: Path, tmp_path: Path, order: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["workload=[mlp_digits]", "reduction=[sum,mean]"] if order == "reversed" else [*CASES, order]
    new = run(tmp_path, FIVE, *overrides)
    assert "unlike orders" in refused(["compare", str(base), str(new)], capsys)


def test_the_interval_is_that_of_the_tables() -> None:
    """Five against five: the third of the 25 ordered differences from either end; P(U <= 2) = 4/252."""
    base, new = np.exp(np.array([0.0, 1, 2, 3, 4])), np.exp(np.array([0.0, 1, 2, 3, 4]) + 0.25)
    pairs = np.sort((np.log(new)[None] - np.log(base)[:, None]).ravel())
    assert np.log(interval(base, new, 0.95)) == pytest.approx([pairs[2], pairs[-3]])
    assert fewest_launches() == 4
    assert math.isnan(interval(base[:3], new[:3], 0.95)[0])
    assert not math.isnan(interval(base[:2], np.tile(new, 2)[:8], 0.95)[0])


def test_exchanged_sides_have_the_inverse_ratio() -> None:
    random = np.random.default_rng(0)
    base, new = np.exp(random.standard_normal((2, 6)))
    there, back = judge(base, new), judge(new, base)
    assert (1 / back.ratio, 1 / back.high, 1 / back.low) == pytest.approx((there.ratio, there.low, there.high))


def test_detectable_is_what_would_just_have_been_shown() -> None:
    base, new = np.array(FIVE), np.array([0.0101, 0.0097, 0.0103, 0.0099, 0.0100])
    found = judge(base, new)
    centred = new / found.ratio
    assert judge(base, centred * (1 + found.detectable) * 1.0001).verdict == MORE
    assert judge(base, centred * (1 + found.detectable) * 0.9999).verdict != MORE


@pytest.mark.parametrize(
    ("base", "new", "verdict"),
    [
        *((1e-7, 1e-7, SAME), (1e-7, 2e-7, MORE), (1e-7, 0.0, LESS), (0.0, 0.0, SAME), (0.0, 1e-9, MORE)),
        *((1e-7, math.inf, MORE), (math.inf, 1e-7, LESS), (math.inf, math.inf, SAME)),
    ],
)
def test_an_exact_quantity_needs_one_launch(base: float, new: float, verdict: str) -> None:
    assert judge_exact(np.array([base]), np.array([new])).verdict == verdict
    assert judge_exact(np.full(5, base), np.full(5, new)).verdict == verdict


def test_a_quantity_that_varies_is_judged_by_its_launches() -> None:
    assert judge_exact(np.array([1e-7, 2e-7]), np.array([3e-7])).verdict == UNCLEAR


@pytest.mark.parametrize("noise", NOISES)
def test_how_often_a_verdict_is_wrong(noise: str) -> None:
    """Five launches a side; equal sides are called different in 5 % at most, whatever the noise. See docs/comparing.md."""
    found = simulate(noise, trials=2000)
    assert found.false_share <= 0.045
    assert found.found_share >= 0.80
    assert found.half > 0
