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
from harness.schema.case import AXES
from launch.__main__ import main
from launch.compose import available_options
from tests.running import ORPHANS_S, launch, processes_of, wait_until
from tests.worlds.pool import Pool

OPTIONS = available_options()
KEYS = st.sampled_from(
    [
        *("name", "results_dir", "seed", "global_batch_size", "iterations", "warm_up", "threads_per_rank", "device", "backend"),
        *(
            "deadline_s",
            "rendezvous_s",
            "restarts",
            "launches",
            "order",
            "rounds",
            "world_sizes",
            "profile",
            "exposed",
            "story",
        ),
        *("until.relative", "drift.steps", "drift.optimizers", "torchrun.nproc_per_node", "torchrun.nnodes", "env", "+env.A"),
        *("launch", "launch.hosts", "launch.ssh", "launch.partition", "launch.time", "experiment", "config_dir", "resume"),
        *(f"{axis}.{option}.{name}" for axis in AXES for option in OPTIONS[axis][:2] for name in ("size", "_target_", "x")),
        *AXES,
        *("probe", "nonsense", "launch.nonsense", "torchrun.nonsense", "a.b.c", "name.x", "\N{GREEK SMALL LETTER ALPHA}", ""),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ["../../etc", "a\nb", "\x1b[31m", "${seed}", "${oc.env:HOME}", "${", "[", "{a:", "'", "~", "null", "a=b=c"]
    ),
    st.text(alphabet="\N{SNOWMAN}\N{RIGHT-TO-LEFT OVERRIDE}ä\n\t\0 ", max_size=5),
)
NUMBERS = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, -1, 10**30])).map(str)
NAMES = st.sampled_from([*(option for options in OPTIONS.values() for option in options), "no_such_option"])
LISTS = st.lists(st.one_of(NAMES, NUMBERS), max_size=4).map(lambda items: f"[{','.join(items)}]")
QUOTED = TEXTS.map(lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'")
VALUES = st.one_of(QUOTED, TEXTS, NUMBERS, NAMES, LISTS, st.sampled_from(["true", "null", "{}", "{a: 1}", "[[1]]"]))
OVERRIDES = st.one_of(
    st.builds("{}={}".format, KEYS, VALUES),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~"]), KEYS, VALUES),
    TEXTS.filter(lambda text: not text.startswith("-")),
)
WILD = st.lists(OVERRIDES, min_size=1, max_size=4)
"""Nearly all are refused, most of them as no such key or no such value."""


def _set(key: str, values: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return values.map(lambda value: f"{key}={value}")


def _some(options: list[str]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=2, unique=True).map(lambda chosen: f"[{','.join(chosen)}]")


NAMED = st.text(alphabet="aB9_-.", min_size=1, max_size=8)
ODD_WORDS = st.sampled_from(["''", "'a b'", '"it\'s"', "\N{SNOWMAN}", "50%", "'$(id)'", "'a;b'", "--help"])
LIKELY = st.one_of(
    _set("name", NAMED),
    _set("seed", st.integers(-1, 2**63)),
    _set("global_batch_size", st.sampled_from([0, 1, 2, 3, 64, 10**9, 2**63])),
    _set("iterations", st.integers(0, 10)),
    _set("warm_up", st.integers(-1, 3)),
    _set("launches", st.integers(0, 3)),
    _set("threads_per_rank", st.integers(0, 3)),
    _set("deadline_s", st.sampled_from([0, 1e-9, 30, 1e6, 1e7])),
    _set("order", st.sampled_from(["matrix", "shuffled", "interleaved", "sorted"])),
    _set("rounds", st.integers(0, 12)),
    _set("until.relative", st.sampled_from([0, 0.02, 1, "null"])),
    _set("drift.steps", st.integers(-1, 4)),
    _set("drift.optimizers.adam", st.sampled_from([0, 0.1, 10, "inf"])),
    _set("torchrun.nproc_per_node", st.integers(0, 5)),
    _set("torchrun.nnodes", st.integers(0, 2)),
    _set("world_sizes", st.lists(st.integers(0, 4), max_size=3)),
    _set("device", st.sampled_from(["auto", "cpu"])),
    _set("backend", st.sampled_from(["auto", "gloo", "nccl", "mpi"])),
    _set("+env.A", ODD_WORDS),
    _set("experiment", st.sampled_from(OPTIONS["experiment"])),
    _set("launch", st.sampled_from([*OPTIONS["launch"], "no_such_launcher"])),
    *(_set(axis, _some(OPTIONS[axis])) for axis in AXES),
)
"""Keys that exist, with values on both sides of what is taken."""
PLAUSIBLE = st.lists(LIKELY, max_size=3, unique_by=lambda override: override.partition("=")[0])
SMALL = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[micro_batch]", "aggregation=[bucketed]", "iterations=1")
WORDS = st.text(alphabet="aB9_-", min_size=1, max_size=5)
SOUND = st.lists(
    st.one_of(
        _set("workload.mlp_digits.hidden", st.sampled_from([0, 1, 8, "[1,3]"])),
        _set("reduction.micro_batch.size", st.integers(1, 9)),
        _set("aggregation.bucketed.bytes", st.sampled_from([1, 4097, 2**40])),
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
SOUND_ONES = SOUND.map(lambda overrides: [*SMALL, *overrides])
ONE_WILD = st.tuples(PLAUSIBLE, WILD).map(lambda both: [*both[0], both[1][0]])
CONFIGURATIONS = st.one_of(SOUND_ONES, PLAUSIBLE, ONE_WILD, WILD)


def told_once(status: int, errors: str) -> None:
    assert status in (0, 2)
    assert "Traceback" not in errors
    assert errors.count("reducebench: ") == (status == 2)


@pytest.fixture(autouse=True)
def _back() -> object:
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.mark.parametrize("examples", [40, pytest.param(500, marks=pytest.mark.full)])
def test_through_the_entry_function(examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Counter[int]()

    @settings(max_examples=examples)
    @given(CONFIGURATIONS)
    def attempt(overrides: list[str]) -> None:
        status = main([*overrides, f"results_dir={tmp_path / 'results'}", "dry_run=true"])
        told_once(status, capsys.readouterr().err)
        assert not list(tmp_path.iterdir())
        seen[status] += 1

    os.chdir(tmp_path)
    attempt()
    assert min(seen[0], seen[2]) > 0.1 * seen.total(), "where nearly all end alike, little is tried"


@pytest.mark.full
@settings(max_examples=30)
@given(CONFIGURATIONS.filter(lambda overrides: not any("\0" in override for override in overrides)))
def test_by_command_line(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "here").mkdir(exist_ok=True)
    done = launch(*overrides, f"results_dir={tmp_path / 'results'}", "dry_run=true", cwd=tmp_path / "here")
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
    """A key that passes the launcher, which imports no torch."""
    done = _run_fully(tmp_path, ["reduction.micro_batch.size=0"])
    assert done.returncode == 2
    told_once(done.returncode, done.stderr)
    assert "reduction.micro_batch: size=0" in done.stderr
    assert not list((tmp_path / "results").glob("smoke/2*/cases/*"))


WRONG = st.one_of(
    _set("workload.mlp_digits.hidden", st.sampled_from([-1, 0.5, "x"])),
    _set("workload.mlp_digits.samples", st.sampled_from([-3, 0, "x"])),
    _set("reduction.micro_batch.size", st.sampled_from([-3, 0, 0.5, "x"])),
    _set("aggregation.bucketed.bytes", st.sampled_from([-1, 0, 0.5, "x"])),
    _set("+reduction.micro_batch.nonsense", st.integers()),
    _set("torchrun.nproc_per_node", st.integers(10, 99)),
)
"""Overrides most of which pass the launcher, which imports no torch, and are refused by the ranks."""


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
        status = main([*run, "dry_run=true"])
        told_once(status, capsys.readouterr().err)
        if status == 2:
            assert last
            seen["launcher"] += 1
        elif last:
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
