"""NCCL's choices, and the matrix of its settings, on a GPU. Not yet run on one."""

from pathlib import Path

import pytest

from harness.report.frame import Run, load_run
from tests.rehearsal import DEVICE, backend_of, few, on_cuda
from tests.running import launch
from tests.test_gpu import check_gpus, run_of

pytestmark = pytest.mark.gpu
SWEEP = ("probe.collectives.most_bytes=4096", "probe.collectives.dtypes=[float32]", "iterations=2")


def test_nccl_logs_what_it_chose(tmp_path: Path) -> None:
    check_gpus("nccl", 2)
    run = run_of("nccl", 2, tmp_path, "experiment=all_reduce_sweep", "nccl_debug=true", *SWEEP)
    if on_cuda("NCCL writes a log"):
        assert run.nccl is not None
        assert not run.nccl.reason
        assert {"AllReduce", "AllGather", "ReduceScatter"} <= set(run.nccl.choices.collective)
        assert {"version", "ranks and nodes", "transport"} <= run.nccl.facts.keys()
        for name in ("AllReduce", "AllGather", "ReduceScatter"):
            assert run.nccl.chosen(name, 4096), "the sweep's own sizes are in the log"
    assert not run.environment.get("changed")


def test_the_matrix_of_ring_and_tree(tmp_path: Path) -> None:
    check_gpus("nccl", 2)
    axes = ("nccl_matrix.algorithms=[RING,TREE]", "nccl_matrix.protocols=[LL]", "nccl_matrix.channels=[1]")
    where = (f"device={DEVICE}", f"backend={backend_of('nccl')}", "torchrun.nproc_per_node=2", f"results_dir={tmp_path}")
    size = "probe.collectives.most_bytes=65536"
    done = launch("experiment=nccl_matrix", *axes, *where, size, *few(["probe.collectives.iterations=2"]))
    assert done.returncode == 0, done.stderr
    own, ring, tree = (load_run(path) for path in sorted((tmp_path / "nccl_matrix").iterdir()) if not path.is_symlink())
    if on_cuda("NCCL does what the matrix asks for"):
        assert "ignores NCCL's settings" not in done.stdout
        assert (chosen(ring), chosen(tree)) == ({("RING", "LL")}, {("TREE", "LL")})
    assert len({run.cases.gradient_sha256[0] for run in (own, ring, tree)}) == 1, "one addition an element, on two ranks"


def chosen(run: Run) -> set[tuple[str, str]]:
    """Algorithms and protocols of a run's all-reduces."""
    assert run.nccl is not None
    reduced = run.nccl.choices[run.nccl.choices.collective == "AllReduce"]
    return set(zip(reduced.algorithm, reduced.protocol, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_average_over_one_rank_is_the_rank_itself(precision: str, tmp_path: Path) -> None:
    """Sizes that do not divide evenly over blocks: before NCCL 2.29.7 their last elements are left as they are."""
    asked = ("workload=[mlp_digits]", "workload.mlp_digits.hidden=2049", "reduction=[mean]", f"precision=[{precision}]")
    run = run_of("nccl", 1, tmp_path, *asked, "aggregation=[local,all_reduce_avg]", "iterations=2")
    assert set(run.cases.status) == {"ok"}
    assert run.cases.gradient_sha256.nunique() == 1
