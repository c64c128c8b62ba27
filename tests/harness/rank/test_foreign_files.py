"""The variables that direct NCCL's log and torch's flight recorder to the run directory."""

import ctypes
import os
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock, patch

import pytest
from torch._C import _distributed_c10d as c10d

from harness.rank import foreign_files
from harness.rank.__main__ import report_in
from harness.rank.foreign_files import direct_files, dump_flight, users
from harness.rank.guard import Guard
from harness.rank.session import Order, run_session, silent
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.synthetic import NOW

NAMES = ("NCCL_DEBUG", "TORCH_FR", "TORCH_NCCL")


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    (tmp_path / "100% mine" / "ranks").mkdir(parents=True)
    run_dir = RunDir(tmp_path / "100% mine")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NAMES)}
    with patch.dict(os.environ, kept, clear=True):
        yield run_dir


def own() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(NAMES)}


def test_log_and_dump_are_directed_into_the_run(run_dir: RunDir) -> None:
    direct_files(run_dir, 3, 1, log=True)
    ranks = run_dir.ranks.path
    assert own() == {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING",
        "NCCL_DEBUG_FILE": f"{str(ranks).replace('%', '%%')}/nccl.launch1.%h.%p.log",
        "TORCH_FR_DUMP_TEMP_FILE": f"{ranks}/flight.launch1.world0.rank_",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{ranks}/flight.launch1.world0.rank_",
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }
    assert [path.name.endswith(f".{os.getpid()}.log") for path in run_dir.ranks.nccl_logs()] == [True]
    assert not {name for name in users(os.environ) if name.startswith(NAMES)}, "equal on equal runs"


def test_every_rank_has_the_same_variables(run_dir: RunDir) -> None:
    """Pre-flight compares the variables of the ranks."""
    seen = []
    for rank in (0, 1):
        direct_files(run_dir, rank, 0, log=True)
        seen.append(own())
    assert seen[0] == seen[1]


def test_another_world_has_another_dump(run_dir: RunDir) -> None:
    direct_files(run_dir, 0, 0, log=False)
    run_dir.note_failure({"at": "", "launch": 0, "culprits": []})
    direct_files(run_dir, 0, 0, log=False)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"].endswith("flight.launch0.world1.rank_")
    assert "NCCL_DEBUG" not in os.environ
    assert run_dir.ranks.nccl_logs() == []


def test_what_the_user_has_set_stays(run_dir: RunDir) -> None:
    mine = {"NCCL_DEBUG": "WARN", "NCCL_DEBUG_FILE": "/tmp/mine", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "/tmp/dump"}
    mine["TORCH_NCCL_TRACE_BUFFER_SIZE"] = "0"
    os.environ.update(mine)
    direct_files(run_dir, 0, 0, log=True)
    assert own() == {**mine, "NCCL_DEBUG_SUBSYS": "INIT,ENV,TUNING", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    assert users(os.environ).items() >= mine.items()
    assert run_dir.ranks.nccl_logs() == []


def test_no_link_is_followed(run_dir: RunDir, tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    bait.write_text("kept")
    run_dir.ranks.own_nccl_log(0).symlink_to(bait)
    with pytest.raises(RefusedError, match="is a symbolic link"):
        direct_files(run_dir, 0, 0, log=True)
    (run_dir.ranks.path / "flight.launch0.world0.rank_1").symlink_to(bait)
    with pytest.raises(RefusedError, match="is a symbolic link"):
        direct_files(run_dir, 1, 0, log=False)
    assert bait.read_text() == "kept"


def test_a_rank_that_is_about_to_end_leaves_its_dump(run_dir: RunDir) -> None:
    direct_files(run_dir, 1, 0, log=False)
    dump_flight(run_dir, 1)
    (dump,) = run_dir.ranks.flight_dumps()
    assert dump.name == "flight.launch0.world0.rank_1"
    assert "version" in pickle.loads(dump.read_bytes())


def test_a_dump_that_cannot_be_made_leaves_no_empty_file(run_dir: RunDir) -> None:
    failing = patch.object(c10d, "_dump_nccl_trace", side_effect=RuntimeError("no recorder"), create=True)
    with failing, pytest.raises(RuntimeError):
        foreign_files._dump(run_dir, "dump1")
    assert not (run_dir.ranks.path / "dump1").exists()


def test_a_rank_whose_dump_holds_the_interpreter_ends_with_the_status_of_a_lost_one(run_dir: RunDir) -> None:
    """In a child: `sleep` without releasing the lock stops every Python thread, as a call of torch that hangs does."""
    direct_files(run_dir, 1, 0, log=False)
    child = os.fork()
    if not child:
        with patch.object(foreign_files, "_DUMP_S", 0.1), patch.object(c10d, "_dump_nccl_trace", _hangs, create=True):
            dump_flight(run_dir, 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def _hangs() -> bytes:
    ctypes.PyDLL(None).sleep(60)
    return b""


def test_a_user_who_has_a_place_for_dumps_gets_none_here(run_dir: RunDir) -> None:
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = "/tmp/dump"
    direct_files(run_dir, 1, 0, log=False)
    dump_flight(run_dir, 1)
    assert run_dir.ranks.flight_dumps() == []


@pytest.mark.parametrize(
    ("why", "phase", "dumps"),
    [("lost", "", 1), ("waited", "", 1), ("terminated", "aggregate", 1), ("terminated", "compare", 0)],
)
def test_a_rank_that_misses_others_dumps_before_it_ends(why: str, phase: str, dumps: int, run_dir: RunDir) -> None:
    """`terminated`: by torchrun, after another rank has ended; deadline_s is over."""
    with patch.object(Guard, "start"):
        state, guard = report_in(run_dir, 0)
    guard.miss(MagicMock(), 0.0)
    state.enter(phase)
    direct_files(run_dir, 0, 0, log=False)
    guard.dump = partial(dump_flight, run_dir, 0)
    with patch("os._exit", side_effect=SystemExit), pytest.raises(SystemExit):
        guard.leave(why)
    assert len(run_dir.ranks.flight_dumps()) == dumps


class StopError(Exception):
    """Ends a session where its first communicator would be made."""


@pytest.mark.parametrize(("backend", "debug", "own_names"), [("nccl", True, 8), ("nccl", False, 5), ("gloo", True, 0)])
def test_a_session_directs_them_before_the_first_communicator(
    backend: str, debug: bool, own_names: int, run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["workload=[mlp_digits]", "reduction=[mean]", f"nccl_debug={debug}", f"results_dir={tmp_path}"]
    made = RunDir.create(compose_config(asked, nproc_per_node=2), NOW)
    seen = list[dict[str, str]]()

    def opened(*_: object, **__: object) -> None:
        seen.append(own())
        raise StopError

    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("harness.rank.session.choose_backend", lambda *_: backend)
    monkeypatch.setattr("harness.rank.session.World.open", opened)
    with patch.object(Guard, "start"):
        state, guard = report_in(made, 0)
    with pytest.raises(StopError):
        run_session(made, lambda: (MagicMock(), 0, 2), state, guard, silent, Order(launch=3))
    assert len(seen[0]) == own_names
    assert all("launch3" in value for name, value in seen[0].items() if name.endswith("_FILE"))
    guard.dump()
    assert len(made.ranks.flight_dumps()) == (backend == "nccl")
