"""An A/B run: launches in turn, a run directory of each side, and the one held against the other."""

import json
from pathlib import Path

import pytest

from harness.report.frame import load_run
from harness.schema.case import Case
from harness.schema.config import BenchmarkConfig
from launch.__main__ import main
from launch.ab import compare_arguments, configure_sides, turns
from launch.verdict import FAILURE, Verdict
from tests.launch.standins import DONE, StandIn
from tests.running import launch

COMMON = ("workload=[mlp_digits]", "reduction=[mean]", "iterations=2", "warm_up=2")


def test_neither_side_is_always_first() -> None:
    assert list(turns([3, 3])) == [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)]
    assert list(turns([1, 2])) == [(0, 0), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--base",), "--base OVERRIDES --new OVERRIDES"),
        (("--gate", "time=5%"), "--base OVERRIDES --new OVERRIDES"),
        (
            ("--base", "aggregation=[flat]", "clip=[by_norm]", "--new", "aggregation=[ddp]"),
            "have no case in common, and differ on several axes",
        ),
        (("--base", "--new", "sync=[barrier]", "--gate", "time=fast"), "--gate time=fast: expected METRIC=LIMIT"),
        (("--base", "--new", "world_sizes=[1,2]"), "an A/B run has two sides"),
        (("--base", "--new", "sync=[bariere]"), "bariere"),
        (("--base", "--new", "order=shuffled"), "order and rounds change times"),
        (("--base", "sync=[none,barrier]", "--new", "sync=[barrier,none]"), "in unlike orders"),
        (("--base", "--new", "aggregation=[ddp]", "--cfg"), "no --cfg"),
        (("--base", "--new", f"name={'n' * 98}"), "expected 1 to 100 letters"),
    ],
)
def test_what_could_not_be_compared_is_refused_before_anything_is_measured(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMON, f"results_dir={tmp_path / 'results'}", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert not (tmp_path / "results").exists()


def test_what_the_sides_differ_in_is_left_out_of_account() -> None:
    def sides(base: str, new: str) -> list[str]:
        return compare_arguments(configure_sides(COMMON, base.split(), new.split(), None, {})[0], [])

    assert sides("sync=[none]", "sync=[none,barrier]") == []
    assert sides("seed=0", "seed=1") == []
    assert sides("aggregation=[flat]", "aggregation=[ddp]") == ["--across", "aggregation"]
    bytes_ = "aggregation=[bucketed] aggregation.bucketed.bytes="
    assert sides(f"{bytes_}65536", f"{bytes_}1048576") == ["--across", "aggregation"]


SIDES = ("--base", "aggregation=[ddp]", "--new", "aggregation=[ddp_fp16]")


def _less_exact(config: BenchmarkConfig, case: Case) -> dict[str, float]:
    return {"relative_l2": 1e-4 if case.aggregation == "ddp_fp16" else 1e-7}


def test_launches_alternate_and_a_gate_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rows that no rank has written."""
    stand_in = StandIn(_less_exact)
    monkeypatch.setattr("launch.job.run_launch", stand_in)
    gates = ("--gate", "relative_l2=2x", "--gate", "memory=10x")
    assert main([*COMMON, "launches=3", f"results_dir={tmp_path}", *SIDES, *gates]) == 1
    base, new = "default-base", "default-new"
    assert stand_in.launched == [(base, 0), (new, 0), (new, 1), (base, 1), (base, 2), (new, 2)]
    assert "broken" in capsys.readouterr().out
    assert (tmp_path / base / "latest" / "report" / "report.md").is_file()
    told = json.loads((tmp_path / new / "latest" / "report" / "compare.json").read_text())
    outcomes = {gate["gate"]: gate["outcome"] for gate in told["judged"]}
    assert (outcomes["relative_l2=2x"], outcomes["memory=10x"] == "broken") == ("broken", False)
    assert {row["metric"]: row["verdict"] for row in told["compared"]}["time"] == "unclear", "three a side show nothing"


@pytest.mark.parametrize(("cause", "words"), [("a signal", "3 launches have not begun"), ("a death", "rank 1 died")])
def test_after_a_launch_that_went_wrong_there_is_no_next(
    cause: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {"a signal": Verdict(0, stopped=True, complete=True), "a death": Verdict(FAILURE, ("rank 1 died",))}
    stand_in = StandIn(verdicts=[DONE, DONE, ends[cause]])
    monkeypatch.setattr("launch.job.run_launch", stand_in)
    assert main([*COMMON, "launches=3", f"results_dir={tmp_path}", *SIDES]) == 1
    assert len(stand_in.launched) == 3
    assert words in capsys.readouterr().err


@pytest.mark.full
def test_two_strategies_in_turn_and_a_gate_that_breaks(tmp_path: Path) -> None:
    gates = ("--gate", "relative_l2=2x", "--gate", "memory=10x")
    done = launch(*COMMON, "launches=2", f"results_dir={tmp_path}", *SIDES, *gates)
    assert done.returncode == 1, done.stderr
    base, new = (load_run(tmp_path / f"default-{side}" / "latest") for side in ("base", "new"))
    notes = [(side, note) for side, run in enumerate((base, new)) for note in run.environment["conditions"]]
    began = {(side, note["launch"]): note["began"] for side, note in notes}
    assert sorted(began, key=lambda turn: began[turn]) == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert (base.path / "report" / "report.md").is_file()
    told = json.loads((new.path / "report" / "compare.json").read_text())
    outcomes = {gate["gate"]: gate["outcome"] for gate in told["judged"]}
    assert outcomes["relative_l2=2x"] == "broken"
    assert {row["metric"]: row["verdict"] for row in told["compared"]}["time"] == "unclear", "two launches a side show nothing"
    assert "broken" in done.stdout
