"""Reading a run of another user: regular files of bounded size and declared shape, shown without control characters."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.schema.config import check_size, load_config
from harness.schema.environment import ENVIRONMENT, read_fitted
from harness.schema.progress import read_progress
from harness.schema.rank_state import read_rank_status
from harness.schema.ranks_dir import RanksDir
from harness.schema.reading import NotWholeError, load_json, open_file, read_bytes
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import message_lines, plain
from tests.synthetic import make_run, steps


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.with_name("target").write_text("{}")
    path.symlink_to("target")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))


@pytest.mark.parametrize("make", [fifo, folder, link, device, listening])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO would wait for a writer forever, a device never ends, and a link leads elsewhere."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "file")
    with pytest.raises(OSError):
        open_file(tmp_path / "file")
    with pytest.raises(NotWholeError):
        load_json(tmp_path / "file")


def test_folders_of_a_run_are_no_links_but_the_run_may_be_one(tmp_path: Path) -> None:
    (tmp_path / "run" / "table").mkdir(parents=True)
    (tmp_path / "run" / "table" / "file").write_text("content")
    (tmp_path / "latest").symlink_to("run")
    (tmp_path / "run" / "other").symlink_to("table")
    assert read_bytes(tmp_path / "latest" / "table" / "file", folders=1) == b"content"
    with pytest.raises(OSError):
        read_bytes(tmp_path / "run" / "other" / "file", folders=1)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 2**40)
    with pytest.raises(NotWholeError, match="more than"):
        load_json(tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "value", "kept", "problem"),
    [
        ("hosts", None, None, ""),
        ("hosts", "text", None, "hosts: expected a list, found text"),
        ("hosts", [3, {"host": "a", "cpus": "x"}], [{}, {"host": "a"}], "hosts[0]: expected a mapping, found a number"),
        ("ranks", [{"cpus": "0-99999999999"}], [{}], "ranks[0].cpus: expected CPUs, as 0-3,8, found text"),
        ("cores", True, None, "cores: expected a whole number of at least 0, found a truth value"),
        ("cores", None, None, ""),
        ("world_size", 10**400, None, "world_size: expected a whole number of at least 0, found a number"),
        ("conditions", [{"hosts": [{"window_s": float("nan")}]}], [{"hosts": [{}]}], "window_s: expected a finite number"),
        ("unknown", [[[[[[[[[[1]]]]]]]]]], None, "unknown: expected finite numbers and text, at most 8 levels deep"),
        ("unknown", {"a": [1, "b"]}, {"a": [1, "b"]}, ""),
    ],
)
def test_what_does_not_fit_is_left_out_and_named(key: str, value: object, kept: object, problem: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"device": "cpu", key: value}))
    read = read_fitted(tmp_path / "environment.json", ENVIRONMENT)
    assert read.content["device"] == "cpu"
    assert read.content.get(key) == kept
    assert problem in "; ".join(read.problems) and bool(read.problems) == bool(problem)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "nul", "\ud800"], ids=["deep", "long", "cut", "bytes"])
def test_json_that_cannot_be_read_has_one_reason(text: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    read = read_fitted(tmp_path / "environment.json", ENVIRONMENT)
    assert read.content is None and len(read.problems) == 1


BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"a: &a [x]\n{BOMB}", "expected no alias"),
        (f"a: {'[' * 5000}{']' * 5000}", "level"),
        (f"a: {'[' * 100}{']' * 100}", "expected at most 64 levels"),
        ("[1, 2]", "expected keys and values"),
        ("text", "is not the configuration"),
        ("reduction: {mean: {_sweepable_: 5}}", "select at least one option"),
    ],
    ids=["bomb", "deep", "rather deep", "list", "text", "sweep"],
)
def test_a_configuration_of_another_kind_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RefusedError, match=words):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("launches", [10**6, 10**18])
def test_more_cases_than_can_be_read_are_refused(launches: int, tmp_path: Path) -> None:
    run = make_run(tmp_path, steps(0.01), "workload=[mlp_digits]", "reduction=[sum,mean]")
    path = run.path / "config.yaml"
    check_size(load_config(path))
    path.write_text(path.read_text().replace("launches: 1\n", f"launches: {launches}\n"))
    with pytest.raises(RefusedError, match="accepted: "):
        load_config(path)


def test_missing_launches_are_counted_without_a_look_for_each(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps(0.01), "workload=[mlp_digits]", "reduction=[sum,mean]")
    path = run.path / "config.yaml"
    path.write_text(path.read_text().replace("launches: 1\n", "launches: 10000\n"))
    assert len(read_progress(run, run.config()).unfinished) == 2 * 9999


@pytest.mark.parametrize("record", [{"rank": "0"}, {"rank": None}, {"lost": []}, {"reached": {"a": "b"}}, [], "x", {"more": 1}])
def test_a_state_of_another_shape_is_none(record: object, tmp_path: Path) -> None:
    whole = {"rank": 0, "pid": 1, "host": "here"}
    content = whole | record if isinstance(record, dict) else record
    (tmp_path / "0.state").write_bytes(b" " * 32 + json.dumps(content).encode())
    assert read_rank_status(tmp_path / "0.state") is None
    (tmp_path / "0.state").write_bytes(b" " * 32 + json.dumps(whole).encode())
    assert read_rank_status(tmp_path / "0.state") is not None


def test_names_in_ranks_that_are_not_ours_are_passed_over(tmp_path: Path) -> None:
    ranks = RanksDir(tmp_path)
    for name in ("node1.came", "nodeX.came", "node.came"):
        (tmp_path / name).write_text("host")
    (tmp_path / "set_aside.json").write_text('{"a": "why", "b": 3}')
    assert ranks.hosts() == {1: "host"}
    assert ranks.aside() == {"a": "why"}


def test_a_run_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(RefusedError, match="not a regular file"):
        RunDir.open(tmp_path).config()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a [2Jb"),
        ("a\r\n\x00b", "a b"),
        ("a\u2028b\u2029c\x85d", "a b c d"),
        ("a\u202eb\u2066c\u200bd\ufeff", "a<U+202E>b<U+2066>c<U+200B>d<U+FEFF>"),
        ("a\ud800b", "a<U+D800>b"),
        ("gr\u00fc\u00dfe \u4e2d e\u0301 \U0001f600", "gr\u00fc\u00dfe \u4e2d e\u0301 \U0001f600"),
    ],
)
def test_what_steers_a_terminal_is_shown_and_letters_stay(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert message_lines(f"{text}\n.").splitlines()[-1] == "."
