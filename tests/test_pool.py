"""The pool of worlds: what a failure in a world says, and that the next test gets another one."""

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from harness.rank.process_group import World
from tests.worlds.pool import Pool, WorldError


def rank_and_size(world: World, text: str) -> list[object]:
    return [world.rank, world.size, text]


def raise_on_rank_1(world: World) -> None:
    """Have rank 0 wait for a rank that raised."""
    if world.rank == 1:
        raise ValueError("planted")
    world.control.meet()


def die_on_rank_1(world: World) -> None:
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def crash_once_on_rank_1(world: World, crashed: str) -> str:
    first = not Path(crashed).exists()
    world.control.meet()
    if world.rank == 1 and first:
        Path(crashed).touch()
        ctypes.string_at(0)
    world.control.meet()
    return "second try"


def sleep(world: World) -> None:
    time.sleep(600)


def test_a_world_serves_several_calls_and_is_replaced_after_a_failure() -> None:
    with Pool() as pool:
        for text in ("one", "other"):
            assert pool.run(2, "tests.test_pool:rank_and_size", text) == [0, 2, text]
        assert pool.started == 1
        with pytest.raises(WorldError) as failed:
            pool.run(2, "tests.test_pool:raise_on_rank_1")
        said = str(failed.value)
        assert said.startswith("tests.test_pool:raise_on_rank_1 on 2 ranks")
        assert "rank 0: did not return" in said
        assert 'test_pool.py", line' in said, "the stack of the rank that waits"
        assert "rank 1: Traceback" in said
        assert "ValueError: planted" in said
        assert pool.run(2, "tests.test_pool:rank_and_size", "again") == [0, 2, "again"]
        assert pool.started == 2
        with pytest.raises(WorldError, match="no attribute 'nosuch'"):
            pool.run(2, "tests.test_pool:nosuch")
    assert torch.distributed.is_initialized() is False, "nothing of a world is in this process"


@pytest.mark.full
def test_a_rank_that_dies_and_a_world_that_hangs_are_told(tmp_path: Path) -> None:
    with Pool() as pool:
        with pytest.warns(UserWarning, match=r"rank 1: died(.|\n)*Segmentation fault(.|\n)*in crash_once_on_rank_1"):
            assert pool.run(2, "tests.test_pool:crash_once_on_rank_1", str(tmp_path / "crashed")) == "second try"
        with pytest.raises(WorldError, match=r"rank 1: died(.|\n)*Signal 9 \(SIGKILL\)"):
            pool.run(2, "tests.test_pool:die_on_rank_1")
        with pytest.raises(WorldError, match=r"rank 0: did not return(.|\n)*sleep"):
            pool.run(2, "tests.test_pool:sleep", timeout_s=1)
