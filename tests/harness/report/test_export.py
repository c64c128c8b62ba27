"""Rows in, and what TensorBoard's and MLflow's own readers find."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from harness.rank.writer import Writer
from harness.report.__main__ import main
from harness.report.export.content import contents
from harness.report.frame import load_run
from harness.schema.matrix import expand_cases
from harness.schema.record import REFERENCE, SCHEMA_VERSION, Discrepancy, Outcome
from harness.schema.run_dir import RunDir
from launch.compose import compose_config
from tests.harness.report.test_report import compared, metrics, write_measured
from tests.harness.schema.test_schema import NOW
from tests.running import HANG_S, ROOT

COUNTING = """
import sys
from harness.report.__main__ import main
from harness.report.frame import Run
original, read = Run.raw_samples, []
Run.raw_samples = lambda run, case_id: read.append(case_id) or original(run, case_id)
status = main(sys.argv[1:])
print(f"samples were reduced {len(read)} times")
sys.exit(status)
"""
"""`python -m harness.report`, which then counts."""


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """`sum` and `micro_batch` measured, `mean` failed; commands in its environment that want to be markup."""
    overrides = [
        "workload=[mlp_digits]",
        "reduction=[sum,mean,micro_batch]",
        "name=small",
        f"results_dir={tmp_path / 'results'}",
    ]
    config = compose_config(overrides, nproc_per_node=2)
    run_dir = RunDir.create(config, NOW)
    sums, mean, micro = expand_cases(config)
    writer = Writer(run_dir)
    for case, scale in ((sums, 1.0), (micro, 2.0)):
        write_measured(writer, case, scale)
        writer.write("discrepancies", case.case_id, compared(case, 3e-8))
    writer.write_outcome(mean, Outcome(case_id=mean.case_id, status="failed", reason="no"))
    run_dir.write_environment({"schema_version": SCHEMA_VERSION, "argv": ["<script>alert(1)</script>"], "commit": "abc"})
    return run_dir


def read(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def values(accumulator: EventAccumulator, tag: str) -> dict[int, float]:
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)}


def test_tensorboard_reads_what_was_exported(run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", "tensorboard", str(run_dir.path), "--to", str(tmp_path / "board")]
    assert [main(command), main(command)] == [0, 0]  # the second takes the first one's place
    assert capsys.readouterr().out.splitlines() == [f"tensorboard --logdir {tmp_path / 'board'}"] * 2
    folder = tmp_path / "board" / "small" / run_dir.path.name
    cases = {path.name.split(".")[1]: path for path in folder.iterdir() if path.is_dir()}
    assert set(cases) == {"sum", "micro_batch"}
    board = read(cases["micro_batch"])
    assert values(board, "seconds/host/step") == pytest.approx({0: 0.04, 1: 0.06, 2: 0.1})
    assert values(board, "seconds/host/forward") == pytest.approx({0: 0.004, 1: 0.006, 2: 0.01})
    assert values(board, "median_s/host/step") == pytest.approx({0: 0.06})
    assert values(board, "peak_memory_bytes") == {0: 2**21}
    assert values(board, "relative_l2/reference")[0] == pytest.approx(3e-8)
    hparams = plugin_data_pb2.HParamsPluginData.FromString(
        board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert hparams["reduction"].string_value == "micro_batch"
    assert hparams["reduction.micro_batch.size"].number_value > 0


def test_texts_are_escaped_for_tensorboard(run_dir: RunDir) -> None:
    assert main(["export", "tensorboard", str(run_dir.path)]) == 0
    board = read(run_dir.report / "tensorboard" / "small" / run_dir.path.name)
    (event,) = board.Tensors("environment")
    (text,) = make_ndarray(event.tensor_proto).flatten()
    assert b"alert" in text
    assert b"<script>" not in text


def test_mlflow_reads_what_was_exported(run_dir: RunDir, tmp_path: Path) -> None:
    """In a process of its own: MLflow keeps threads and settings. It leaves nothing where it was started."""
    here = tmp_path / "here"
    here.mkdir()
    store = f"sqlite:///{tmp_path}/mlflow.db"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COUNTING, "export", "mlflow", str(run_dir.path), "--to", store]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "samples were reduced 2 times", (
        "once a case, for the report and the metrics together"
    )
    assert list(here.iterdir()) == []
    program = f"""
from mlflow import MlflowClient
client = MlflowClient(tracking_uri={store!r})
(experiment,) = [one for one in client.search_experiments() if one.name == "reducebench/small"]
runs = client.search_runs([experiment.experiment_id])
(whole,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
assert whole.data.tags["reducebench.commit"] == "abc"
assert {{file.path for file in client.list_artifacts(whole.info.run_id)}} == {{"report.md", "config.yaml", "environment.json"}}
cases = {{run.data.params["reduction"]: run for run in runs if run is not whole}}
assert set(cases) == {{"sum", "micro_batch"}}
case = cases["micro_batch"]
assert case.data.tags["mlflow.parentRunId"] == whole.info.run_id
assert case.data.params["reduction.micro_batch.size"] and case.info.status == "FINISHED"
history = client.get_metric_history(case.info.run_id, "seconds/host/step")
print(sorted((metric.step, round(metric.value, 9)) for metric in history))
print(case.data.metrics["median_s/host/step"], case.data.metrics["relative_l2/reference"])
"""
    back = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert back.returncode == 0, back.stderr
    assert back.stdout.splitlines() == ["[(0, 0.04), (1, 0.06), (2, 0.1)]", "0.06 3e-08"]


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_without_the_extra_there_is_one_message(kind: str, run_dir: RunDir) -> None:
    program = (
        f"import sys; sys.modules[{kind!r}] = None; from harness.report.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "export", kind, str(run_dir.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"reducebench-report: export {kind} needs more packages: pip install 'reducebench[{kind}]'")


def test_wrong_use_is_refused(run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "tensorboard", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["export", "tensorboard", str(run_dir.path), "--to", str(tmp_path / "file")]) == 2
    assert "cannot write there" in capsys.readouterr().err


def test_a_store_that_mlflow_does_not_know_is_refused(run_dir: RunDir) -> None:
    command = [sys.executable, "-m", "harness.report", "export", "mlflow", str(run_dir.path), "--to", "nowhere://x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("reducebench-report: export mlflow: ")


def test_every_launch_is_exported(tmp_path: Path) -> None:
    overrides = ["workload=[mlp_digits]", "reduction=[sum]", "name=twice", "launches=2", f"results_dir={tmp_path / 'results'}"]
    run_dir = RunDir.create(compose_config(overrides, nproc_per_node=2), NOW)
    (case,) = expand_cases(run_dir.config())
    for launch, scale in enumerate((1.0, 3.0)):
        write_measured(Writer(run_dir, launch), case, scale)
        Writer(run_dir, launch).write("discrepancies", case.case_id, compared(case, 1e-8 * scale))
    first, second = contents(load_run(run_dir.path))
    assert (first.launch, second.launch) == (0, 1)
    assert dict(second.seconds["host/step"]) == pytest.approx({0: 0.06, 1: 0.09, 2: 0.15})
    assert [one.figures["relative_l2/reference"] for one in (first, second)] == pytest.approx([1e-8, 3e-8])


def test_the_distance_is_that_of_the_rank_that_is_furthest_away(run_dir: RunDir) -> None:
    case = next(case for case in expand_cases(run_dir.config()) if case.reduction == "sum")
    far = [
        Discrepancy.of(case.case_id, rank, REFERENCE, "", metrics(relative_l2=value))
        for rank, value in enumerate((1e-8, 5e-8, 3e-8))
    ]
    Writer(run_dir).write("discrepancies", case.case_id, far)
    one = next(one for one in contents(load_run(run_dir.path)) if one.case_id == case.case_id)
    assert one.figures["relative_l2/reference"] == pytest.approx(5e-8)


def test_the_peak_of_a_cpu_process_is_no_figure_of_a_case(run_dir: RunDir) -> None:
    case = next(case for case in expand_cases(run_dir.config()) if case.reduction == "sum")
    exported = {}
    for device in ("cpu", "cuda"):
        Writer(run_dir).write_outcome(case, Outcome(case_id=case.case_id, status="ok", device=device, peak_memory_bytes=2**21))
        exported[device] = next(one.figures for one in contents(load_run(run_dir.path)) if one.case_id == case.case_id)
    assert "peak_memory_bytes" not in exported["cpu"] and exported["cuda"]["peak_memory_bytes"] == 2**21


def test_nan_of_one_rank_is_exported_as_an_infinite_distance(run_dir: RunDir) -> None:
    case = next(case for case in expand_cases(run_dir.config()) if case.reduction == "sum")
    far = [
        Discrepancy.of(case.case_id, rank, REFERENCE, "", metrics(relative_l2=value))
        for rank, value in enumerate((1e-8, math.nan))
    ]
    Writer(run_dir).write("discrepancies", case.case_id, far)
    one = next(one for one in contents(load_run(run_dir.path)) if one.case_id == case.case_id)
    assert one.figures["relative_l2/reference"] == math.inf
