"""The main job on CUDA: NCCL, device events and synchronization, and ranks that share a GPU over gloo."""

from pathlib import Path

import pytest
import torch

from harness.report.frame import load_run
from harness.schema.record import REFERENCE
from tests.running import launch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), ("gloo", 2), ("nccl", 2)])
def test_every_mode_on_cuda(backend: str, ranks: int, tmp_path: Path) -> None:
    if backend == "nccl" and ranks > torch.cuda.device_count():
        pytest.skip(f"nccl takes one rank a GPU, and {torch.cuda.device_count()} are visible")
    done = launch(
        *("device=cuda", f"backend={backend}", f"torchrun.nproc_per_node={ranks}", "sync=[none,device,barrier]"),
        *("iterations=3", "precision=[fp32,fp64]", f"results_dir={tmp_path}"),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    run = load_run(tmp_path / "default" / "latest")
    skipped = run.cases[run.cases.status == "skipped"]
    assert set(zip(skipped.workload, skipped.reduction, strict=True)) == {("cnn_digits", "per_sample_vmap")}
    assert set(run.samples["clock"]) == {"host", "cuda_event"}
    assert (run.cases[run.cases.status == "ok"].device == "cuda").all()
    rows = run.discrepancies[(run.discrepancies.against == REFERENCE) & (run.discrepancies.parameter == "")]
    rows = rows.merge(run.cases, on="case_id")
    assert (rows[(rows.precision == "fp64") & (rows.workload != "cnn_digits")].relative_l2 < 1e-12).all()
    assert (rows[(rows.precision == "fp32") & (rows.workload != "cnn_digits")].relative_l2 < 1e-6).all()
    assert (run.samples.query("phase == 'sync'").seconds > 0).all()
