"""The order of a sum over ranks, in real gloo worlds: what masks reveal, and that data are summed so, bit for bit."""

from itertools import product

import pytest
import torch

from harness.probes.order import AT_ONCE, NONE, TREE, UNSTABLE, WIDE, Chunk, reveal, unsupported
from tests.conftest import Measure, shown
from tests.worlds.order import DTYPES
from tests.worlds.pool import Pool

NAMED = ("all_reduce", "flat", "bucketed", "ddp")
IN_FLOAT64 = "all_gather_ordered"
"""It sums in float64, and rounds once."""


SOME = ((2, "float32"), (3, "float64"), (4, "float16"))
"""World sizes and dtypes of `make test`; every strategy on three ranks in bfloat16."""
ALL = [pytest.param(*both, marks=[] if both in SOME else [pytest.mark.full]) for both in product((2, 3, 4, 5, 6), DTYPES)]


@pytest.mark.parametrize(("ranks", "dtype"), ALL)
def test_every_bit_is_replayed(ranks: int, dtype: str, worlds: Pool) -> None:
    strategies = worlds.run(ranks, "tests.worlds.order:replays", dtype, NAMED)
    assert {"collective", *NAMED} <= set(strategies)
    for name, sizes in strategies.items():
        for size, (shows, trees, left_out, unlike) in sizes.items():
            where = (name, size)
            assert (where, shows, left_out, unlike) == (where, "tree", 0, 0)
            assert 1 <= trees <= ranks, where


@pytest.mark.parametrize("dtype", [pytest.param(dtype, marks=[pytest.mark.full] * (dtype != "bfloat16")) for dtype in DTYPES])
@pytest.mark.parametrize("ranks", [3])
def test_every_strategy_that_sums_is_replayed_or_known_not_to_round_at_each_addition(
    ranks: int, dtype: str, worlds: Pool
) -> None:
    strategies = worlds.run(ranks, "tests.worlds.order:replays", dtype)
    assert len(strategies) > 12
    for name, sizes in strategies.items():
        for size, (shows, _, left_out, unlike) in sizes.items():
            wide = name == IN_FLOAT64 and dtype != "float64"
            assert (name, size, shows, unlike) == (name, size, "wide" if wide else "tree", 0)
            assert bool(left_out) == wide


def revealed(*outside: float, size: int = 3) -> Chunk:
    """What is concluded where, probe after probe, so many ranks are found outside."""
    told = iter(outside)

    def total(tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.fill_(next(told))

    ((chunk,),) = reveal(total, [torch.empty(5)], rank=0, size=size)
    return chunk


def test_what_is_no_tree_is_called_by_its_name() -> None:
    assert revealed(*[1, 1, 1] * 2).shows == WIDE, "every pair meets alone"
    assert revealed(*[0, 0, 0] * 2) == Chunk(0, 5, AT_ONCE, (0, 1, 2))
    assert revealed(*[1, 0, 0], *[0, 1, 0]).shows == UNSTABLE
    assert revealed(*[1, 1, 0] * 2).shows == NONE, "0 meets 1, and 0 meets 2, each without the other"
    assert revealed(*[0.5, 0, 0] * 2).shows == NONE
    assert revealed(*[float("nan"), 0, 0] * 2).shows in (NONE, UNSTABLE)
    assert revealed(*[1, 0, 0] * 2) == Chunk(0, 5, TREE, ((0, 1), 2))


def test_what_cannot_be_shown_is_said() -> None:
    assert unsupported(torch.float32, 8) is None
    assert "not summed by rounded additions" in str(unsupported(torch.int32, 8))
    assert "counts to 256, and there are 512 ranks" in str(unsupported(torch.bfloat16, 512))


@pytest.mark.parametrize("ranks", [3])
def test_the_probe_draws_the_trees(ranks: int, measure: Measure) -> None:
    asked = ("probe=[summation_order]", "probe.summation_order.bytes=[64,4096]")
    finished = shown(measure("workload=[mlp_digits]", "reduction=[sum]", "iterations=1", *asked, ranks=ranks))
    assert "(1 + 2) + 0" in finished.output
    run = finished.run
    unlike = run.observations[run.observations.quantity == "replayed with other bits"]
    assert len(unlike) == 4 * 3 * 3, "two dtypes of two sizes each, three orders, three ranks"
    assert (unlike.value == 0).all()
    assert (run.path / "report" / "summation_order.png").stat().st_size > 5000
