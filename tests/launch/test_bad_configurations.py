"""Configurations that nobody should write: refused with one message, or run; no traceback, no process or file left behind."""

import itertools
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from harness.report.frame import load_run
from launch.__main__ import main
from launch.compose import available_options
from tests.launch.overrides import Lines
from tests.launch.trial import attempt_all
from tests.running import ORPHANS_S, launch, processes_of, wait_until
from tests.worlds.pool import Pool

OPTIONS = available_options()
LINES = Lines(OPTIONS)


def _set(key: str, values: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return values.map(lambda value: f"{key}={value}")


def _some(options: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True).map(lambda chosen: f"[{','.join(chosen)}]")


ODD_WORDS = st.sampled_from(["''", "'a b'", '"it\'s"', "\N{SNOWMAN}", "50%", "'$(id)'", "'a;b'", "--help"])
SMALL = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[micro_batch]", "aggregation=[bucketed]", "iterations=1")
WORDS = st.text(alphabet="aB9_-", min_size=1, max_size=5)
SOUND = st.lists(
    st.one_of(
        _set("workload.mlp_digits.hidden", st.sampled_from([1, 8, "[1,3]"])),
        _set("reduction.micro_batch.size", st.integers(1, 9)),
        _set("aggregation.bucketed.bytes", st.sampled_from([1, 4097, 2**40, "64K"])),
        _set("name", st.builds("{}.{}".format, WORDS, WORDS)),
        _set("seed", st.integers(0, 2**63 - 1)),
        _set("global_batch_size", st.integers(2, 9)),
        _set("torchrun.nproc_per_node", st.integers(1, 2)),
        _set("warm_up", st.integers(0, 2)),
        _set("+env.A", ODD_WORDS),
        _set("sharding", _some(["even", "uneven", "by_length"])),
        _set("normalization", _some(OPTIONS["normalization"])),
        _set("precision", _some(["fp32", "fp64", "bf16"])),
    ),
    max_size=3,
    unique_by=lambda override: override.partition("=")[0],
)
"""Odd, and yet a run; of seconds."""


def told_once(status: int, errors: str) -> None:
    assert status in (0, 2)
    assert "Traceback" not in errors
    assert errors.count("reducebench: ") == (status == 2)


@pytest.fixture(autouse=True)
def _back() -> object:
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.mark.parametrize("seeds", [range(100), pytest.param(range(100, 1100), marks=pytest.mark.full)], ids=len)
def test_drawn_command_lines_are_refused_or_could_run(seeds: range, tmp_path: Path) -> None:
    """Other seeds: python -m tests.launch.trial FIRST LAST."""
    os.chdir(tmp_path)
    seen = attempt_all(LINES, seeds, tmp_path)
    assert min(seen[0], seen[2]) > 0.1 * seen.total(), "where nearly all end alike, little is tried"


@pytest.mark.full
@pytest.mark.parametrize("seed", range(30))
def test_by_command_line(tmp_path: Path, seed: int) -> None:
    line = LINES.draw(2000 + seed)
    (tmp_path / "here").mkdir()
    if any("\0" in part for part in line):
        pytest.skip("no command line can hold a null character")
    encoded = [part.encode(errors="surrogatepass").decode(errors="surrogateescape") for part in line]
    done = launch(*encoded, f"results_dir={tmp_path / 'results'}", "dry_run=true", cwd=tmp_path / "here")
    told_once(done.returncode, done.stderr)
    _nothing_left(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_refused_by_the_launcher_on_the_command_line(tmp_path: Path) -> None:
    done = _run_fully(tmp_path, ["reduction=[none,nosuch]"])
    assert (done.returncode, done.stdout) == (2, "")
    told_once(done.returncode, done.stderr)
    assert "no such option" in done.stderr
    assert not (tmp_path / "results").exists()


def test_refused_by_the_ranks_on_the_command_line(tmp_path: Path) -> None:
    """A key that passes the launcher, which reads no data; nothing is left of the run."""
    done = _run_fully(tmp_path, ["workload.mlp_digits.samples=5000"])
    assert done.returncode == 2
    told_once(done.returncode, done.stderr)
    assert "the data set has 1797 samples" in done.stderr
    assert not list((tmp_path / "results").iterdir())


WRONG = st.one_of(
    _set("workload.mlp_digits.samples", st.sampled_from([1798, 5000])),
    _set("global_batch_size", st.sampled_from([1798, 10**6])),
)
"""Overrides that pass the launcher, which reads no data, and are refused by the ranks."""


@pytest.mark.parametrize("ranks", [2])
def test_odd_configurations_run_and_wrong_ones_are_refused_by_ranks(
    worlds: Pool, ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers, seen = itertools.count(), Counter[str]()

    @settings(max_examples=8, phases=[Phase.generate])
    @given(SOUND.filter(lambda overrides: not any(map(_sets_ranks, overrides))), st.one_of(st.none(), WRONG))
    def attempt(overrides: list[str], last: str | None) -> None:
        results = tmp_path / str(next(numbers))
        run = [*SMALL, *overrides, *([last] if last else []), f"results_dir={results}"]
        assert main([*run, "dry_run=true"]) == 0, capsys.readouterr().err
        if last:
            told = worlds.run(ranks, "tests.worlds.refusals:refusals", [run])[0]
            assert all(told), run
            seen["ranks"] += 1
        else:
            assert worlds.run(ranks, "tests.worlds.refusals:refusals", [run]) == [[""] * ranks]
            _check_sound(results)
            seen["sound"] += 1

    attempt()
    assert seen["ranks"] and seen["sound"], seen


def _sets_ranks(override: str) -> bool:
    return override.startswith("torchrun.nproc_per_node")


def _check_sound(results: Path) -> None:
    run = load_run(next(results.glob("*/latest")))
    assert not run.missing
    assert set(run.cases.status) <= {"ok", "skipped"}


@pytest.mark.full
@pytest.mark.parametrize(("wrong", "status"), [(st.just(None), 0), (WRONG, 2)], ids=["sound", "wrong"])
def test_run_fully(tmp_path: Path, wrong: st.SearchStrategy[str | None], status: int) -> None:
    numbers = itertools.count()

    @settings(max_examples=3, phases=[Phase.generate])
    @given(SOUND, wrong)
    def attempt(overrides: list[str], last: str | None) -> None:
        done = _run_fully(tmp_path / str(next(numbers)), [*overrides, *([last] if last else [])])
        assert done.returncode == status, done.stdout + done.stderr
        told_once(done.returncode, done.stderr)

    attempt()


def _run_fully(folder: Path, overrides: list[str]) -> "subprocess.CompletedProcess[str]":
    (folder / "here").mkdir(parents=True)
    done = launch(*SMALL, *overrides, f"results_dir={folder / 'results'}", cwd=folder / "here")
    assert "Traceback" not in done.stdout
    _nothing_left(folder)
    assert {path.name for path in folder.iterdir()} <= {"here", "results"}
    return done


def _nothing_left(folder: Path) -> None:
    assert wait_until(lambda: not processes_of(folder), ORPHANS_S), processes_of(folder)
    assert not list((folder / "here").iterdir())
