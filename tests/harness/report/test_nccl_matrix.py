"""Runs under different settings of NCCL, whose truth is known, and the table over them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.rank.writer import Writer
from harness.report.frame import Run, load_run
from harness.report.nccl_matrix import is_matrix, matrix, matrix_tables
from harness.schema.config import TorchrunConfig
from harness.schema.nccl_settings import Combination, combination_of
from harness.schema.record import OK, Asked, Observation, Timing
from harness.schema.run_dir import RunDir
from tests.harness.report.test_nccl_log import PREFIX, write_log
from tests.synthetic import make_run, steps

SIZES = (4096, 1048576, 16777216)
LINE = PREFIX + "AllReduce: {} Bytes -> Algo {} proto {} channel{{Lo..Hi}}={{0..{}}}\n"
COMMON = ("name=nccl_matrix", "workload=[mlp_digits]", "reduction=[mean]", "probe=[summation_order,collectives]")
COMMON += ("nccl_debug=true", "torchrun.nproc_per_node=4")


def made(folder: Path, combination: Combination, *, bits: str, order: str, seconds: float, log: str) -> Run:
    """One finished run of four ranks of NCCL."""
    asked = [f"+env.{name}={value}" for name, value in combination.variables.items()]
    run_dir = make_run(folder, steps(0.01), *COMMON, *asked, ranks=4, gradient_sha256=lambda case, launch: bits * 64)
    run_dir.write_environment({**run_dir.environment(), "backend": "nccl", "device": "cuda"})
    write_log(run_dir, log)
    writer = Writer(run_dir)
    elements = Observation(order, "elements", 1024.0)
    subject = "all_reduce, float32, 4,096 bytes"
    writer.write_probe("summation_order", [Asked("summation_order", subject, OK)], [(subject, 0, elements)])
    timed = [
        (f"{size}", rank, Timing("all_reduce", "float32", size, size // 4, True, 1, 0, False, "host", seconds * size))
        for size in SIZES
        for rank in range(4)
    ]
    writer.write_probe("collectives", [Asked("collectives", str(size), OK) for size in SIZES], timed)
    return load_run(run_dir.path)


def refused(folder: Path, combination: Combination, how: str, log: str) -> Run:
    """A run of which NCCL refused the settings before the first case."""
    run = made(folder, combination, bits="0", order="", seconds=1.0, log=log)
    run_dir = RunDir(run.path)
    for table in ("cases", "probes"):
        for file in run_dir.table(table).iterdir():
            file.unlink()
    run_dir.note_failure({"at": "now", "launch": 0, "culprits": [{"rank": None, "how": how}]})
    return load_run(run.path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("matrix")
    ring, tree = "((0 + 1) + 2) + 3", "(0 + 1) + (2 + 3)"
    own = "".join(LINE.format(size, "RING" if size > 4096 else "TREE", "SIMPLE", 7) for size in SIZES)
    as_asked = "".join(LINE.format(size, "RING", "LL", 0) for size in SIZES)
    other = "".join(LINE.format(size, "RING", "SIMPLE", 3) for size in SIZES)
    warning = "vm:721:721 [0] enqueue.cc:1825 NCCL WARN Error : no algorithm/protocol available for function AllReduce\n"
    return [
        made(folder, Combination(), bits="a", order=tree, seconds=1e-9, log=own),
        made(folder, Combination("RING", "LL", 1), bits="b", order=ring, seconds=2e-9, log=as_asked),
        made(folder, Combination("TREE", "LL", 8), bits="a", order=ring, seconds=1e-9, log=other),
        refused(folder, Combination("NVLS", "LL128", 8), "refused: pre-flight: NCCL error: invalid usage", warning),
    ]


def test_bits_orders_and_bandwidth_stand_in_one_table(runs: list[Run]) -> None:
    assert is_matrix(runs)
    rows = matrix(runs)
    assert rows.bits.tolist() == ["A", "B", "A", ""]
    assert rows.order.tolist() == ["A", "B", "B", ""]
    assert rows.busbw_gbs_4096.tolist()[:3] == pytest.approx([1.5, 0.75, 1.5]), "1 GB/s and 0.5 GB/s, times 2 * 3 / 4"
    assert rows.algorithm.tolist() == ["NCCL's choice", "RING", "TREE", "NVLS"]


def test_what_nccl_chose_is_held_against_what_it_was_asked(runs: list[Run]) -> None:
    rows = matrix(runs)
    assert rows.nccl_chose.tolist() == ["TREE SIMPLE, RING SIMPLE", "RING LL", "RING SIMPLE", ""]
    asked = rows.as_asked.tolist()
    assert asked[:2] == ["", "yes"]
    assert asked[2] == ("no: algorithm RING in place of TREE; protocol SIMPLE in place of LL; at most 4 channels in place of 8")
    assert asked[3].startswith("not known: ")


def test_a_refused_combination_is_a_row_with_the_reason(runs: list[Run]) -> None:
    why = matrix(runs).why_none.tolist()
    assert why[:3] == [""] * 3
    assert why[3] == (
        "refused: pre-flight: NCCL error: invalid usage; NCCL: Error : no algorithm/protocol available for function AllReduce"
    )


def test_orders_are_spelled_out_once(runs: list[Run]) -> None:
    table = {table.title: table for table in matrix_tables(runs, matrix(runs))}
    orders = table["Summation orders"].rows
    assert orders["sum of the ranks"].tolist() == ["(0 + 1) + (2 + 3)", "((0 + 1) + 2) + 3"]
    assert "ignores" not in table["NCCL: algorithm, protocol, channels"].note
    assert "two ranks" not in table["NCCL: algorithm, protocol, channels"].note


@pytest.mark.parametrize(("ranks", "remark"), [(1, "chooses nothing"), (2, "one addition for each element")])
def test_what_few_ranks_cannot_show_is_said(ranks: int, remark: str, runs: list[Run]) -> None:
    few = [replace(run, config=replace(run.config, torchrun=TorchrunConfig(nproc_per_node=ranks))) for run in runs]
    assert remark in next(matrix_tables(few, matrix(few))).note


def test_equal_settings_are_no_matrix(runs: list[Run]) -> None:
    assert not is_matrix([runs[0], runs[0]])


@pytest.mark.parametrize(
    ("variables", "combination"),
    [
        ({}, Combination()),
        ({"NCCL_ALGO": "allreduce:ring", "OTHER": "x"}, Combination("allreduce:ring")),
        ({"NCCL_MIN_NCHANNELS": "4", "NCCL_MAX_NCHANNELS": "4"}, Combination(channels=4)),
        ({"NCCL_MAX_NCHANNELS": "4"}, Combination()),
        (dict.fromkeys(("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS"), "\u0664"), Combination()),
    ],
)
def test_settings_are_read_from_the_environment(variables: dict[str, Any], combination: Combination) -> None:
    assert combination_of(variables) == combination


def test_settings_survive_the_environment() -> None:
    combination = Combination("RING", "LL128", 8)
    assert combination_of(combination.variables) == combination
