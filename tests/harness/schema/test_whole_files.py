"""Files of a run directory are written at their own path: planted links are not followed."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.rank.__main__ import redirect_output
from harness.rank.gradient_store import GradientStore
from harness.schema.rank_state import RankState, RankStatus, note_death
from harness.schema.ranks_dir import RanksDir
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.whole_files import (
    check_in_place,
    make_folder,
    open_in_place,
    open_new,
    remove,
    remove_all,
    write_whole,
    writing,
)

MINE = b"mine"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the reader, outside of the run."""
    path = tmp_path / "home" / "victim"
    path.parent.mkdir()
    path.write_bytes(MINE)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    (path / "ranks").mkdir(parents=True)
    return path


def test_a_file_takes_the_place_of_a_link(run: Path, victim: Path) -> None:
    (run / "cost.csv").symlink_to(victim)
    os.link(victim, run / "report.md")
    for name in ("cost.csv", "report.md"):
        write_whole(run / name, b"new", run)
        assert (run / name).read_bytes() == b"new"
        assert not (run / name).is_symlink()
    assert victim.read_bytes() == MINE


def test_hidden_names_cannot_be_foreseen(run: Path) -> None:
    names = []
    for _ in range(3):
        with writing(run / "cost.csv", run):
            names += [path.name for path in run.iterdir() if path.name.startswith(".")]
    assert len(set(names)) == 3
    assert not any("cost" in name for name in names)
    assert sorted(path.name for path in run.iterdir()) == ["cost.csv", "ranks"]


Act = Callable[[Path, Path], object]


@pytest.mark.parametrize(
    "act",
    [
        lambda folder, run: write_whole(folder / "victim", b"new", run),
        lambda folder, run: make_folder(folder / "deeper", run),
        lambda folder, run: open_new(folder / "victim", run).close(),
        lambda folder, run: os.close(open_in_place(folder / "victim", run, os.O_RDWR)),
        lambda folder, run: remove(folder / "victim", run),
        lambda folder, run: remove_all(folder, run, "v*"),
        lambda folder, run: GradientStore(folder / "0", run).save("a", [("", torch.ones(1))]),
    ],
)
@pytest.mark.parametrize("deep", ["link", "real/link"])
def test_no_folder_may_be_a_link(act: Act, deep: str, run: Path, victim: Path) -> None:
    (run / "real").mkdir()
    (run / deep).symlink_to(victim.parent)
    with pytest.raises(RefusedError, match=rf"/{deep}: is a symbolic link; expected a folder"):
        act(run / deep, run)
    assert [path.name for path in victim.parent.iterdir()] == ["victim"]
    assert victim.read_bytes() == MINE


def test_no_folder_leads_out(run: Path, victim: Path) -> None:
    with pytest.raises(RefusedError, match="leads out"):
        write_whole(run / ".." / "home" / "victim", b"new", run)
    assert victim.read_bytes() == MINE


def test_what_the_user_named_may_be_a_link(run: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(run)
    make_folder(tmp_path / "latest" / "report", tmp_path / "latest")
    write_whole(tmp_path / "latest" / "report" / "a", b"new", tmp_path / "latest")
    assert (run / "report" / "a").read_bytes() == b"new"


def _symbolic(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _hard(path: Path, victim: Path) -> None:
    os.link(victim, path)


def _fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, victim: Path) -> None:
    path.mkdir()


Plant = Callable[[Path, Path], None]


@pytest.mark.parametrize("plant", [_symbolic, _hard, _fifo, _folder])
def test_what_is_changed_in_place_is_a_file_of_the_run_alone(plant: Plant, run: Path, victim: Path) -> None:
    """Logs, the launcher's lock, and the state of a dead rank."""
    ranks, status = RanksDir(run / "ranks"), RankStatus(0, 7, "here")
    for name in ("launcher", "0.log", "torchrun.log", "0.state"):
        plant(run / "ranks" / name, victim)
    for act in (
        lambda: RunDir(run).occupied().__enter__(),
        lambda: RunDir(run).looked_at().__enter__(),
        lambda: redirect_output(ranks.log(0)),
        lambda: ranks.note_start("torchrun", ["torchrun"]),
        lambda: note_death(ranks.state(0), status, "killed"),
        ranks.check_logs,
    ):
        with pytest.raises(RefusedError, match=r"ranks/\S+: (is a symbolic link, or no regular file|has \d names)"):
            act()
    assert victim.read_bytes() == MINE


@pytest.mark.parametrize("plant", [_symbolic, _hard, _fifo])
def test_states_and_gradients_are_new_files(plant: Plant, run: Path, victim: Path) -> None:
    store = GradientStore(run / "scratch" / "0", run)
    make_folder(run / "scratch" / "0", run)
    for name in ("saved", "flat", "blank"):
        plant(store._path(name), victim)
    plant(run / "ranks" / "0.state", victim)
    RankState(run / "ranks" / "0.state", RankStatus(0, 7, "here")).enter("start")
    store.save("saved", [("", torch.ones(3))])
    store.save_flat("flat", [torch.ones(3)])
    store.blank("blank", 3).fill_(1)
    assert [value.tolist() for _, value in store.load("saved")] == [[1, 1, 1]]
    assert store.flat("blank").tolist() == [1, 1, 1]
    store.drop(["saved", "flat", "blank"])
    assert not list((run / "scratch" / "0").iterdir())
    assert victim.read_bytes() == MINE


def test_half_written_files_of_killed_ranks_go_when_the_run_ends(run: Path) -> None:
    (run / "cases").mkdir()
    for name in (".0123456789abcdef.part", "whole.parquet"):
        (run / "cases" / name).write_bytes(MINE)
    (run / "scratch" / "0").mkdir(parents=True)
    RunDir(run).remove_scratch()
    assert [path.name for path in (run / "cases").iterdir()] == ["whole.parquet"]
    assert not (run / "scratch").exists()


def test_a_linked_scratch_is_not_emptied(run: Path, victim: Path) -> None:
    (run / "scratch").symlink_to(victim.parent)
    (run / "cases").symlink_to(victim.parent)
    (victim.parent / ".x.part").write_bytes(MINE)
    with pytest.raises(RefusedError, match="cases: is a symbolic link"):
        RunDir(run).remove_scratch()
    assert sorted(path.name for path in victim.parent.iterdir()) == [".x.part", "victim"]


def test_a_file_that_cannot_be_read_can_be_checked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run of another user's run checks logs that it may not read."""
    log = run / "ranks" / "0.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    opened = os.open

    def denied(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == log.name and not flags & os.O_PATH:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", denied)
    check_in_place(log, run)
    with pytest.raises(PermissionError, match=str(log)):
        open_in_place(log, run, os.O_RDONLY)
