"""Golden raw calls in, bandwidths out."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from harness.rank.writer import Writer
from harness.report.bandwidth_picture import bandwidth
from harness.report.collectives import collective_tables, collectives, unmeasured
from harness.report.frame import Run, load_run
from harness.schema.record import OK, Asked, Observation, Timing
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.harness.schema.test_schema import NOW

SECONDS = {
    0: [9.0, 0.001, 0.003, 0.002],
    1: [9.0, 0.002, 0.001, 0.002],
    2: [9.0, 0.001, 0.001, 0.004],
    3: [9.0, 0.001, 0.001, 0.001],
}
"""Rank to seconds of each iteration, the first a warm-up: the slowest takes 2, 3 and 4 ms."""


def timed(collective: str, in_flight: int, clock: str = "host") -> list[tuple[str, int, Timing]]:
    return [
        (
            f"{collective} x{in_flight}",
            rank,
            Timing(collective, "float32", 3_000_000, 750_000, True, in_flight, iteration, iteration == 0, clock, second),
        )
        for rank, seconds in SECONDS.items()
        for iteration, second in enumerate(seconds)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run_dir = RunDir.create(compose_config([f"results_dir={tmp_path}", "probe=[collectives]"], nproc_per_node=2), NOW)
    seen = [*timed("all_reduce", 1), *timed("all_reduce", 4), *timed("all_gather", 1), *timed("a$b|<i>", 1)]
    seen += [("all_reduce x1", rank, Observation("crafted data", "elements checked", 750_000)) for rank in range(4)]
    asked = [Asked("collectives", subject, OK) for subject in dict.fromkeys(subject for subject, _, _ in seen)]
    Writer(run_dir).write_probe("collectives", asked, seen)
    return load_run(run_dir.path)


def test_bandwidths_are_those_of_nccl_tests(run: Run) -> None:
    rows = collectives(run).set_index(["collective", "in_flight"])
    assert rows.median_s.tolist() == [0.003] * 4
    assert rows.min_s.tolist() == [0.002] * 4
    assert rows.iterations.tolist() == [3] * 4
    assert rows.algbw_gbs["all_reduce", 1] == pytest.approx(3e6 / 0.003 / 1e9)
    assert rows.busbw_gbs["all_reduce", 1] == pytest.approx(1.0 * 2 * 3 / 4)
    assert rows.busbw_gbs["all_gather", 1] == pytest.approx(1.0 * 3 / 4)
    assert rows.busbw_gbs["all_reduce", 4] == pytest.approx(4 * 1.5)
    assert rows.elements_checked["all_reduce", 1] == 3_000_000


def test_names_from_a_run_are_escaped(run: Run) -> None:
    rows = collectives(run)
    page = "\n".join(table.markdown() for table in collective_tables(rows, brief=False))
    assert "<i>" not in page
    assert bandwidth(rows).startswith(b"\x89PNG")


def test_the_device_clock_is_shown_where_there_is_one(run: Run) -> None:
    rows = collectives(run)
    device = rows.assign(clock="cuda_event", median_s=rows.median_s / 2)
    shown = next(iter(collective_tables(pd.concat([rows, device]), brief=True)))
    assert shown.rows["in place: us"].tolist() == ["1500"]
    assert "device clock" in shown.note
    assert "Bandwidths: clock cuda_event." in shown.note


def test_bandwidths_are_those_of_calls_in_a_row_where_there_are_any(run: Run) -> None:
    """One call takes 3 ms; in a row each takes 1.5 ms, and in a CUDA graph 1 ms."""
    rows = collectives(run)
    clocks = {"host": 1.0, "cuda_event": 1.0, "cuda_back_to_back": 0.5, "cuda_graph": 1 / 3}
    several = [
        rows.assign(clock=clock, median_s=rows.median_s * s, busbw_gbs=rows.busbw_gbs / s) for clock, s in clocks.items()
    ]
    table = next(iter(collective_tables(pd.concat(several), brief=False, unmeasured=[" Clock x lacks 3 settings: why."])))
    shown = table.rows[["in place: us", "in place: in a row, us", "in place: graph, us", "in place: busbw"]].iloc[0]
    assert shown.tolist() == ["3000", "1500", "1000", "3"]
    assert table.rows["elements checked"].tolist() == ["3000000"]
    assert "Bandwidths: clock cuda_back_to_back. Clock x lacks 3 settings: why." in table.note


def test_a_clock_without_numbers_says_why_once(tmp_path: Path) -> None:
    run_dir = RunDir.create(compose_config([f"results_dir={tmp_path}", "probe=[collectives]"], nproc_per_node=2), NOW)
    why = Observation("cuda_graph", "clock not measured", float("nan"), "gloo cannot")
    seen = [*timed("all_reduce", 1), *timed("all_reduce", 4)]
    seen += [
        (f"all_reduce x{number}", rank, replace(why, text="" if rank else why.text)) for number in (1, 4) for rank in range(4)
    ]
    asked = [Asked("collectives", f"all_reduce x{number}", OK) for number in (1, 4)]
    Writer(run_dir).write_probe("collectives", asked, seen)
    assert unmeasured(load_run(run_dir.path)) == [" Clock cuda_graph lacks 2 settings: gloo cannot."]
