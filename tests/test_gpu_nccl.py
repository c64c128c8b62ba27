"""What NCCL chose, and the matrix of its settings, on a GPU. Not yet run on one."""

from pathlib import Path

import pytest
import torch

from harness.rank.preflight import SHARING
from harness.report.frame import Run, load_run
from tests.running import ENVIRONMENT, launch

pytestmark = pytest.mark.gpu
TWO = ("backend=nccl", "device=cuda", "torchrun.nproc_per_node=2")


@pytest.fixture
def two_ranks() -> None:
    """Skip where two ranks of NCCL have no device each, and may not share one."""
    if torch.cuda.device_count() < 2 and ENVIRONMENT.get(SHARING) != "1":
        pytest.skip(f"two ranks of NCCL need two GPUs, or {SHARING}=1 with NCCL 2.30 or later")


def runs_of(folder: Path) -> list[Run]:
    return [load_run(path) for path in sorted(folder.iterdir()) if not path.is_symlink()]


@pytest.mark.usefixtures("two_ranks")
def test_nccl_logs_what_it_chose(tmp_path: Path) -> None:
    few = ("probe.collectives.most_bytes=4096", "probe.collectives.dtypes=[float32]", "iterations=2")
    done = launch("experiment=all_reduce_sweep", "nccl_debug=true", *few, *TWO, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(tmp_path / "all_reduce_sweep")
    assert run.nccl is not None
    assert not run.nccl.reason
    assert {"AllReduce", "AllGather", "ReduceScatter"} <= set(run.nccl.choices.collective)
    assert {"version", "ranks and nodes", "transport"} <= run.nccl.facts.keys()
    for name in ("AllReduce", "AllGather", "ReduceScatter"):
        assert run.nccl.chosen(name, 4096), "the sweep's own sizes are in the log"
    assert not run.environment.get("changed")


@pytest.mark.usefixtures("two_ranks")
def test_the_matrix_of_ring_and_tree(tmp_path: Path) -> None:
    few = ("nccl_matrix.algorithms=[RING,TREE]", "nccl_matrix.protocols=[LL]", "nccl_matrix.channels=[1]")
    done = launch("experiment=nccl_matrix", *few, *TWO, "probe.collectives.most_bytes=65536", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "ignores NCCL's settings" not in done.stdout
    own, ring, tree = runs_of(tmp_path / "nccl_matrix")
    for run, algorithm in ((ring, "RING"), (tree, "TREE")):
        assert run.nccl is not None
        reduced = run.nccl.choices[run.nccl.choices.collective == "AllReduce"]
        assert set(reduced.algorithm) == {algorithm}
        assert set(reduced.protocol) == {"LL"}
    assert len({run.cases.gradient_sha256[0] for run in (own, ring, tree)}) == 1, "one addition an element, on two ranks"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_average_over_one_rank_is_the_rank_itself(precision: str, tmp_path: Path) -> None:
    """Sizes that do not divide evenly over blocks: before NCCL 2.29.7 their last elements are left as they are."""
    asked = ("workload=[mlp_digits]", "workload.mlp_digits.hidden=2049", "reduction=[mean]", f"precision=[{precision}]")
    one = ("backend=nccl", "device=cuda", "torchrun.nproc_per_node=1", "iterations=2")
    done = launch("name=one", *asked, *one, "aggregation=[local,all_reduce_avg]", f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(tmp_path / "one")
    assert set(run.cases.status) == {"ok"}
    assert run.cases.gradient_sha256.nunique() == 1
