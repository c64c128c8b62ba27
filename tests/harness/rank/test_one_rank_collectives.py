"""A collective that only one rank calls, in a user's code: who waits where, and what is said of it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.rank.whereabouts import Standstill, place_of
from tests.running import launch
from tests.worlds.pool import Pool

LOOKS = 12
LIMIT_S = 30.0


@pytest.fixture(scope="module", params=[2])
def seen(request: pytest.FixtureRequest, worlds: Pool) -> dict[str, object]:
    found: dict[str, object] = worlds.run(request.param, "tests.worlds.one_rank:seen", timeout_s=120.0)
    return found


def test_a_users_collective_is_not_taken_for_one_of_the_control_group(seen: dict[str, object]) -> None:
    assert seen["sums"] == [3.0, 3.0], "on the default group, with the control group used in between"


def test_the_default_group_gives_up_at_the_deadline(seen: dict[str, object]) -> None:
    assert seen["default_timeout_s"] == seen["deadline_s"]


def test_the_rank_that_waits_is_named_with_its_line_and_so_is_the_other(seen: dict[str, object]) -> None:
    failure = str(seen["failure"])
    assert failure.startswith("rank 0: RuntimeError: ")
    assert "Timed out waiting 1000ms" in failure
    assert "(in all_reduce at one_rank.py:" in failure
    assert failure.endswith("in alone); rank 1: waited meanwhile")


def test_a_rank_that_waits_is_seen_where_it_stands(seen: dict[str, object]) -> None:
    assert str(seen["stands"]).startswith("all_reduce at one_rank.py:")


def test_a_collective_of_reducebench_itself_is_no_place_of_the_user(seen: dict[str, object]) -> None:
    assert seen["control"] == ""


def looked(call: Callable[[threading.Event], object], enough: Callable[[list[float]], bool]) -> list[float]:
    """Times since when the main thread stood where it was, over looks of another thread while it makes the call.

    The looks end, and the event is set, as soon as they are enough; a busy machine may need more of them.
    """
    standstill, since, ended = Standstill(), list[float](), threading.Event()

    def look() -> None:
        until = time.monotonic() + LIMIT_S
        while not enough(since) and time.monotonic() < until:
            standstill.look()
            since.append(standstill.since)
            time.sleep(0.02)
        ended.set()

    thread = threading.Thread(target=look)
    thread.start()
    while not ended.is_set():
        call(ended)
    thread.join()
    return since


def test_a_thread_that_waits_in_one_call_stands_still() -> None:
    def still(since: list[float]) -> bool:
        return len(since) >= LOOKS and len(set(since[-LOOKS:])) == 1

    assert still(looked(lambda ended: ended.wait(), still))


def test_a_thread_that_comes_to_the_same_line_anew_does_not() -> None:
    def step(ended: threading.Event) -> None:
        for _ in range(50):
            sum(range(100_000))  # the other thread can look only when this one call has returned

    assert len(set(looked(step, lambda since: len(set(since)) > 2 or len(since) > 4 * LOOKS))) > 2


def test_an_error_of_the_users_code_has_its_line() -> None:
    def model() -> None:
        raise ValueError

    with pytest.raises(ValueError) as raised:
        model()
    assert str(place_of(raised.value)).startswith("test_one_rank_collectives.py:")
    assert str(place_of(raised.value)).endswith(" in model")


PACKAGE = """
def fail():
    raise ValueError


def caught():
    try:
        fail()
    except ValueError as error:
        return error
"""


def test_the_users_own_line_comes_before_those_of_installed_packages() -> None:
    package: dict[str, Callable[[], ValueError]] = {}
    exec(compile(PACKAGE, "/lib/site-packages/third/party.py", "exec"), package)

    def model() -> None:
        package["fail"]()

    with pytest.raises(ValueError) as raised:
        model()
    assert str(place_of(raised.value)).endswith(" in model")
    assert str(place_of(package["caught"]())) == "party.py:3 in fail", "there is no other line"


MODEL = """
import time

import torch
import torch.distributed as dist
from torch import nn

GROUP, CALLS = None, 0


def load():
    global GROUP
    GROUP = dist.new_group([0, 1])
    return torch.randn(64, 10), torch.randn(64, 1)


class OneRank(nn.Module):
    def __init__(self, how, after):
        super().__init__()
        self.layer, self.how, self.after = nn.Linear(10, 1), how, after

    def forward(self, inputs):
        global CALLS
        CALLS += 1
        if dist.get_rank() == 0 and CALLS > self.after:
            getattr(self, self.how)(torch.zeros(1))
        return self.layer(inputs)

    def default(self, tensor):
        dist.all_reduce(tensor)

    def own(self, tensor):
        dist.all_reduce(tensor, group=GROUP)

    def loop(self, tensor):
        while True:
            time.sleep(0.01)
"""
WORKLOAD = """
one_rank:
  _target_: harness.axes.workload.base.Workload
  model: {_target_: one_rank.OneRank, _partial_: true, how: HOW, after: AFTER}
  loss: {_target_: torch.nn.MSELoss, _partial_: true}
  data: {_target_: one_rank.load, _partial_: true}
"""
BEFORE, LATE = 0, 12
"""Forward passes before the planted one: none, which is while the workload is assembled; or those of the warm-up and more."""


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "after", "status", "words"),
    [
        ("default", BEFORE, 2, ["rank 0 on ", "in all_reduce at one_rank.py:", "in default); rank 1 was in phase assemble"]),
        (
            "own",
            BEFORE,
            1,
            ["rank 0 (pid ", " s in all_reduce at one_rank.py:", "rank 1 waits for the others in phase assemble"],
        ),
        ("loop", BEFORE, 1, ["rank 0 (pid ", "it hangs at one_rank.py:", "in loop, before the first case, phase assemble"]),
        ("default", LATE, 1, ["rank 0 on ", "phase forward: RuntimeError", "in all_reduce at one_rank.py:", "; rank 1 on "]),
        ("own", LATE, 1, ["rank 0 (pid ", " s in all_reduce at one_rank.py:", "in case one_rank.mean", ", phase forward"]),
        ("loop", LATE, 1, ["rank 0 (pid ", "it hangs at one_rank.py:", "in case one_rank.mean", ", phase forward"]),
    ],
)
def test_a_run_ends_within_the_deadline(tmp_path: Path, how: str, after: int, status: int, words: list[str]) -> None:
    (tmp_path / "workload").mkdir()
    (tmp_path / "one_rank.py").write_text(MODEL)
    planted = WORKLOAD.replace("HOW", how).replace("AFTER", str(after))
    (tmp_path / "workload" / "one_rank.yaml").write_text(planted)
    asked = ("workload=[one_rank]", "reduction=[mean]", "torchrun.nproc_per_node=2", "deadline_s=5", "restarts=0")
    done = launch("--config-dir", str(tmp_path), *asked, f"results_dir={tmp_path / 'results'}")
    assert done.returncode == status
    said = " ".join((done.stdout + done.stderr).split())
    assert [word for word in words if word not in said] == []
