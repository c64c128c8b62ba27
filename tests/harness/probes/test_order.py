"""The order of a sum over ranks, in real gloo worlds: what masks reveal, and that data are summed so, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.probes.order import AT_ONCE, NONE, TREE, UNSTABLE, WIDE, Chunk, reveal, unsupported
from harness.report.frame import load_run
from tests.running import launch, torchrun

NAMED = ("all_reduce", "flat", "bucketed", "ddp")
IN_FLOAT64 = "all_gather_ordered"
"""It sums in float64, and rounds once."""


def world(ranks: int, tmp_path: Path, *asked: str) -> dict[str, dict[str, dict[str, list[Any]]]]:
    out = tmp_path / "out.json"
    done = torchrun(ranks, "-m", "tests.worlds.order", str(out), *asked)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, dict[str, list[Any]]]] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize("ranks", [2, 4, 5, 6])
def test_every_bit_is_replayed(ranks: int, tmp_path: Path) -> None:
    rows = world(ranks, tmp_path, *NAMED)
    assert len(rows) == 4
    for dtype, strategies in rows.items():
        assert {"collective", *NAMED} <= set(strategies)
        for name, sizes in strategies.items():
            for size, (shows, trees, left_out, unlike) in sizes.items():
                where = (dtype, name, size)
                assert (where, shows, left_out, unlike) == (where, "tree", 0, 0)
                assert 1 <= trees <= ranks, where


def test_every_strategy_that_sums_is_replayed_or_known_not_to_round_at_each_addition(tmp_path: Path) -> None:
    rows = world(3, tmp_path)
    for dtype, strategies in rows.items():
        assert len(strategies) > 12
        for name, sizes in strategies.items():
            for size, (shows, _, left_out, unlike) in sizes.items():
                wide = name == IN_FLOAT64 and dtype != "float64"
                assert (dtype, name, size, shows, unlike) == (dtype, name, size, "wide" if wide else "tree", 0)
                assert bool(left_out) == wide


def shown(*outside: float, size: int = 3) -> Chunk:
    """What is concluded where, probe after probe, so many ranks are found outside."""
    told = iter(outside)

    def total(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.fill_(next(told))

    ((chunk,),) = reveal(total, [torch.empty(5)], rank=0, size=size)
    return chunk


def test_what_is_no_tree_is_called_by_its_name() -> None:
    assert shown(*[1, 1, 1] * 2).shows == WIDE, "every pair meets alone"
    assert shown(*[0, 0, 0] * 2) == Chunk(0, 5, AT_ONCE, (0, 1, 2))
    assert shown(*[1, 0, 0], *[0, 1, 0]).shows == UNSTABLE
    assert shown(*[1, 1, 0] * 2).shows == NONE, "0 meets 1, and 0 meets 2, each without the other"
    assert shown(*[0.5, 0, 0] * 2).shows == NONE
    assert shown(*[float("nan"), 0, 0] * 2).shows in (NONE, UNSTABLE)
    assert shown(*[1, 0, 0] * 2) == Chunk(0, 5, TREE, ((0, 1), 2))


def test_what_cannot_be_shown_is_said() -> None:
    assert unsupported(torch.float32, 8) is None
    assert "not summed by rounded additions" in str(unsupported(torch.int32, 8))
    assert "counts to 256, and there are 512 ranks" in str(unsupported(torch.bfloat16, 512))


def test_the_probe_draws_the_trees(tmp_path: Path) -> None:
    asked = ("probe.summation_order.bytes=[64,4096]", "torchrun.nproc_per_node=3", f"results_dir={tmp_path}")
    done = launch("workload=[mlp_digits]", "reduction=[sum]", "iterations=2", "probe=[summation_order]", *asked)
    assert done.returncode == 0, done.stderr
    assert "(1 + 2) + 0" in done.stdout
    run = load_run(tmp_path / "default" / "latest")
    unlike = run.observations[run.observations.quantity == "replayed with other bits"]
    assert len(unlike) == 4 * 3 * 3, "two dtypes of two sizes each, three orders, three ranks"
    assert (unlike.value == 0).all()
    assert (run.path / "report" / "summation_order.png").stat().st_size > 5000
