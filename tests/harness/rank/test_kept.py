"""A sweep that is cut short keeps its answers, and goes on after them."""

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from harness.probes.control import Control
from harness.rank.kept import Kept
from harness.rank.progress import take_up
from harness.rank.writer import Writer
from harness.report.frame import load_run
from harness.report.render import show
from harness.schema.record import FAILED, OK, SCHEMA_VERSION, SKIPPED, Asked, Observation, Timing
from harness.schema.run_dir import RunDir
from launch.job import configure
from launch.patience import Ended
from launch.resume import configure_resume
from launch.verdict import judge
from tests.worlds.pool import Pool

PROBE, SETTINGS = "collectives", 3


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """Files of a sweep that has not begun."""
    asked = ["experiment=all_reduce_sweep", "torchrun.nproc_per_node=2", f"results_dir={tmp_path}"]
    return RunDir.create(configure(asked, None), datetime.now())


@pytest.mark.parametrize("ranks", [2])
def test_a_sweep_goes_on_after_the_settings_that_it_has_measured(worlds: Pool, ranks: int, run_dir: RunDir) -> None:
    found: dict[str, Any] = worlds.run(ranks, "tests.worlds.sweep:goes_on", str(run_dir.path), SETTINGS, timeout_s=120.0)
    before, after, subjects = found["before"], found["after"], found["subjects"]
    assert (before["taken"], after["taken"]) == (0, SETTINGS)
    kept = [row for row in before["seen"] if row[0] in subjects[:SETTINGS]]
    assert kept, "what was measured before"
    assert sorted(row for row in after["seen"] if row[0] in subjects[:SETTINGS]) == sorted(kept), "is there, bit for bit"
    assert [subject for subject, _ in after["asked"]] == subjects, "in the order of the sweep"
    measured = [status for _, status in after["asked"]].count(OK)
    assert found["calls"] == 3 * (measured - SETTINGS), "and no call of it was repeated"
    assert run_dir.parts(PROBE) == []
    assert run_dir.listed("probes") == {PROBE}


def timing(subject: str, seconds: float, rank: int = 0) -> tuple[str, int, Timing]:
    return subject, rank, Timing("all_reduce", "float32", 8 if subject == "a" else 16, 2, True, 1, 0, False, "host", seconds)


def left_a_part(run_dir: RunDir) -> None:
    """Two answers, one failure and one skipped setting."""
    asked = [Asked(PROBE, subject, status) for subject, status in (("a", OK), ("b", FAILED), ("c", SKIPPED), ("d", OK))]
    seen = [timing("a", 1.0), ("a", 1, Observation("crafted data", "elements checked", 2.0)), timing("d", 2.0, rank=1)]
    Writer(run_dir, 0).write_part(PROBE, asked[:2], seen[:2])
    Writer(run_dir, 0).write_part(PROBE, asked[2:], seen[2:])


def test_only_answers_are_kept(run_dir: RunDir) -> None:
    left_a_part(run_dir)
    run_dir.case_file("collectives", f"{PROBE}.part1").write_bytes(b"not whole")
    asked, seen = Kept(run_dir, PROBE, Writer(run_dir, 0)).read()
    assert [row.subject for row in asked] == ["a"]
    assert [(subject, rank) for subject, rank, _ in seen] == [("a", 1), ("a", 0)]


def test_what_is_kept_is_shown_and_said(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir.write_environment({"schema_version": SCHEMA_VERSION, "world_size": 2, "device": "cpu", "backend": "gloo"})
    left_a_part(run_dir)
    run = load_run(run_dir.path)
    assert (list(run.probes.subject), list(run.collectives.seconds)) == (["a", "b", "c", "d"], [1.0, 2.0])
    assert PROBE in run.missing, "it is not finished"
    assert judge(run_dir, Ended(signal="SIGINT"), []).lines == (
        "ended by SIGINT: 0 of 2 cases and probes are finished and kept; and 2 answers of probe collectives",
    )
    going = configure_resume([f"resume={run_dir.path}", "accept_changes=true"])
    assert going.said == (
        "0 of 2 cases and probes stand; 0 failed and 2 missing ones are done now, but for 2 answers of collectives, which stand"
    )
    show([run_dir.path])
    assert "the run ended in it; 2 answers are kept" in " ".join(capsys.readouterr().out.split())


def test_a_crash_while_a_probe_is_taken_back_leaves_it_missing(run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    Writer(run_dir, 0).write_probe(PROBE, [Asked(PROBE, "a", OK), Asked(PROBE, "b", FAILED)], [timing("a", 1.0)])
    replace, calls = os.replace, list[str]()

    def crash(name: str, target: str, **folders: int) -> None:
        calls.append(name)
        if len(calls) > 1:
            raise KeyboardInterrupt
        replace(name, target, **folders)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        run_dir.make_part(PROBE)
    assert run_dir.listed("probes") == set(run_dir.parts(PROBE))
    assert Kept(run_dir, PROBE, Writer(run_dir, 0)).read() == ([], []), "a part that is not whole holds nothing"


def test_parts_that_a_crash_left_beside_whole_files_are_dropped(run_dir: RunDir) -> None:
    left_a_part(run_dir)
    Writer(run_dir, 0).write_probe(PROBE, [Asked(PROBE, "a", OK)], [timing("a", 1.0)])
    take_up(run_dir, run_dir.config(), 0, Control(None, 0, 1), retry=False)
    assert run_dir.parts(PROBE) == []


def test_no_answer_is_said_to_be_kept_where_all_questions_failed(run_dir: RunDir) -> None:
    Writer(run_dir, 0).write_part(PROBE, [Asked(PROBE, "a", FAILED)], [])
    going = configure_resume([f"resume={run_dir.path}", "accept_changes=true"])
    assert going.said == "0 of 2 cases and probes stand; 0 failed and 2 missing ones are done now"
    assert judge(run_dir, Ended(signal="SIGINT"), []).lines == (
        "ended by SIGINT: 0 of 2 cases and probes are finished and kept",
    )


def test_a_setting_that_failed_is_asked_again_and_the_others_stand(run_dir: RunDir) -> None:
    config, control = run_dir.config(), Control(None, 0, 1)
    asked = [Asked(PROBE, "a", OK), Asked(PROBE, "b", FAILED, "not here")]
    Writer(run_dir, 0).write_probe(PROBE, asked, [timing("a", 1.0)])
    assert take_up(run_dir, config, 0, control, retry=False).probes == {PROBE}
    assert take_up(run_dir, config, 0, control, retry=True).probes == frozenset()
    kept, seen = Kept(run_dir, PROBE, Writer(run_dir, 0)).read()
    assert ([row.subject for row in kept], len(seen)) == (["a"], 1)
