"""Strategies of aggregation, beside the closed forms that tests/harness/rank/test_closed_form.py holds them to."""

import pytest
import torch

from harness.axes.aggregation.buffers import InBuckets, by_dtype, flatten, unflatten
from harness.schema.record import REFERENCE
from launch.compose import compose_config
from tests.conftest import Measure
from tests.matrices import pairs, product
from tests.options import AVAILABLE
from tests.skips import unknown
from tests.worlds.odd_models import MODELS, REDUCTIONS
from tests.worlds.pool import Pool


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ddp_leaves_the_bits_of_a_plain_script(ranks: int, worlds: Pool) -> None:
    """So does one all-reduce a parameter, or one of all, at two ranks; from three on, the order of summation differs."""
    for workload, found in worlds.run(ranks, "tests.worlds.plain_ddp:beside_a_script").items():
        assert found["ddp"][:2] == [0, True], workload
        for aggregation in ("all_reduce", "flat"):
            apart, same_bits, order_told = found[aggregation]
            assert same_bits == (ranks == 2), (workload, aggregation)
            assert apart < 1e-6, (workload, aggregation)
            assert order_told, f"{workload} {aggregation}: not the ranks' own gradients, summed in gloo's order"


def check_odd_models(worlds: Pool, ranks: int, cells: list[tuple[str, ...]]) -> None:
    """Hold cells (model, aggregation, reduction) to the gradient of the whole batch."""
    found = worlds.run(ranks, "tests.worlds.odd_models:errors", cells)
    assert unknown(found["skipped"].values()) == []
    assert all(found["bits"].values()), "all ranks hold the same bits"
    lossless = {case: error for case, error in found["errors"].items() if case.split()[1] not in ("ddp_fp16", "ddp_powersgd")}
    assert {case: error for case, error in lossless.items() if not error < 1e-12} == {}
    unequal = [case for case, reason in found["skipped"].items() if "the ranks' batches differ" in reason]
    assert {tuple(case.split()[:2]) for case in unequal} == {("SometimesUsed", "fsdp")}


@pytest.mark.parametrize("ranks", [2, 3])
def test_frozen_tied_and_unused_parameters(ranks: int, worlds: Pool) -> None:
    check_odd_models(worlds, ranks, pairs(list(MODELS), AVAILABLE["aggregation"], REDUCTIONS, seed=ranks))


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_combination_of_odd_models(ranks: int, worlds: Pool) -> None:
    check_odd_models(worlds, ranks, product(list(MODELS), AVAILABLE["aggregation"], REDUCTIONS))


def test_every_strategy_is_in_the_experiments_of_all() -> None:
    for experiment in ("aggregation", "memory"):
        assert set(compose_config([f"experiment={experiment}"], nproc_per_node=2).aggregation) == set(AVAILABLE["aggregation"])


@pytest.mark.parametrize("ranks", [4])
def test_nodes_inside_a_host(ranks: int, measure: Measure) -> None:
    """Four ranks as two nodes of two: the means of two, then of both; three would not divide."""
    run = measure(
        "workload=[mlp_digits]",
        "reduction=[mean]",
        "aggregation=[hierarchical]",
        "aggregation.hierarchical.ranks_per_node=[1,2,3,4]",
        "precision=[fp64]",
        "iterations=1",
        ranks=ranks,
    )
    cases = run.cases.set_index("aggregation.hierarchical.ranks_per_node")
    assert cases.status.to_dict() == {1: "ok", 2: "ok", 3: "skipped", 4: "ok"}
    assert unknown([cases.reason[3]]) == []
    rows = run.discrepancies[(run.discrepancies.parameter == "") & (run.discrepancies.against == REFERENCE)]
    assert (rows.relative_l2 < 1e-15).all()


def test_buckets_hold_what_fits_and_one_dtype() -> None:
    sizes = [(2, torch.float32), (1, torch.float32), (8, torch.float32), (1, torch.float32), (1, torch.float64)]
    gradients = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    found = [[tensor.numel() for tensor in bucket] for bucket in InBuckets(bytes=12).buckets(gradients)]
    assert found == [[2, 1], [8], [1], [1]], "12 bytes; one that is too large is alone; another dtype is apart"
    assert list(InBuckets(bytes=12).buckets([])) == []


def test_a_buffer_is_padded_and_comes_back() -> None:
    gradients = [torch.arange(6.0).view(2, 3), torch.tensor(7.0), torch.arange(4.0)]
    buffer = flatten(gradients, multiple=4)
    assert buffer.tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3, 0]
    unflatten(2 * buffer, gradients)
    assert gradients[0].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert float(gradients[1]) == 14
    assert [len(alike) for alike in by_dtype([*gradients, gradients[0].double()])] == [3, 1]
