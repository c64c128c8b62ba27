"""profile=true: a trace a rank and case, and nothing else of the run moved by it."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.schema.run_dir import RunDir
from tests.conftest import Finished, Measure, shown

MATRIX = (
    *("workload=[mlp_digits]", "reduction=[sum,micro_batch]", "normalization=[rank_mean]", "aggregation=[all_reduce,ddp]"),
    *("sync=[barrier]", "fault=[none,stale_rank]", "iterations=3", "warm_up=1", "device=cpu"),
)


@pytest.fixture(scope="module")
def traced(measure: Measure) -> Finished:
    return shown(measure(*MATRIX, "profile=true"))


def loaded(path: Path) -> dict[str, Any]:
    with gzip.open(path, "rt") as file:
        trace = json.load(file)
    assert isinstance(trace, dict)
    return trace


def test_every_phase_is_a_range_as_often_as_it_ran_on_every_rank(traced: Finished) -> None:
    run = traced.run
    traces, measured = RunDir(run.path).traces(), run.cases[run.cases.status == "ok"]
    assert set(traces) == set(measured.case_id)
    assert len(measured) >= 6
    for case_id, paths in traces.items():
        phases = set(run.samples_of(case_id).query("clock == 'host'").phase) - {"step"}
        assert phases >= {"sync", "aggregate"}
        for rank, path in enumerate(paths):
            trace = loaded(path)
            ranges = Counter(event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation")
            assert {phase: ranges[phase] for phase in phases} == dict.fromkeys(phases, 3)
            assert len([name for name in ranges if name.startswith("ProfilerStep#")]) == 3
            assert trace["distributedInfo"] == {"backend": "gloo", "rank": rank, "world_size": 2}
            assert trace["reducebench"]["case_id"] == case_id
            named = {event["pid"] for event in trace["traceEvents"] if event["name"] == "process_name"}
            assert run.environment["ranks"][rank]["pid"] in named


def test_a_traced_run_measures_what_an_untraced_one_does(traced: Finished, measure: Measure) -> None:
    run, untraced = traced.run, shown(measure(*MATRIX))
    plain = untraced.run
    assert "Traces" not in untraced.output
    assert not (plain.path / "traces").exists()
    columns = ["case_id", "status", "iterations", "gradient_sha256"]
    assert run.cases[columns].equals(plain.cases[columns])
    assert len(run.samples) == len(plain.samples)


def test_the_report_names_the_traces(traced: Finished) -> None:
    run = traced.run
    page = (run.path / "report" / "report.md").read_text()
    assert "ui.perfetto.dev" in traced.output
    assert "## Traces" in page
    assert page.count("traces/mlp") == len(RunDir(run.path).traces())
