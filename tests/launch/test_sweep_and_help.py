"""--help, --cfg, --multirun, --config-dir, and several ranks that make one run."""

import shutil
import time
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from harness.report.frame import load_run
from harness.schema.case import AXES
from harness.schema.launcher import KINDS
from harness.schema.refusal import RefusedError
from launch.__main__ import main
from launch.compose import available_options, compose_config, split_sweep
from launch.help import help_text
from launch.job import configure
from tests.options import AVAILABLE
from tests.running import ROOT, launch, torchrun


def test_help_lists_every_axis_with_its_options_quickly() -> None:
    began = time.monotonic()
    done = launch("--help")
    assert time.monotonic() - began < 10  # 0.5 s where nothing else runs
    assert done.returncode == 0
    for axis in AXES:
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"  {axis} "))
        assert line.split(maxsplit=1)[1] == ", ".join(AVAILABLE[axis])
    assert "iterations=10" in done.stdout


@pytest.mark.parametrize("name", KINDS)
def test_a_launchers_options_are_what_its_class_has(name: str) -> None:
    """They stand in conf/ too, so that `launch.KEY=VALUE` needs no plus sign."""
    listed = yaml.safe_load((ROOT / "conf" / "launch" / f"{name}.yaml").read_text())
    assert listed == {"kind": name, **asdict(KINDS[name]())}


@pytest.mark.parametrize("name", KINDS)
def test_help_lists_a_launcher_and_each_of_its_keys(name: str) -> None:
    text = help_text(available_options())
    assert f"  {', '.join(sorted(KINDS))}: what starts the ranks" in text
    _, _, rest = text.partition(f"\nKeys of launch={name}: ")
    listed = rest.partition("\n\n")[0].splitlines()[1:]
    assert [line.split("=")[0].strip() for line in listed] == [f"launch.{key.name}" for key in fields(KINDS[name])]


def test_help_says_of_a_launcher_s_key_what_its_dataclass_says() -> None:
    lines = help_text(available_options()).splitlines()
    assert f"  {'launch.time=':<32} As sbatch takes it: 00:30:00." in lines
    assert any(
        line.startswith("  launch.ssh=[ssh,-o,") and line.endswith(" What takes a host and a command.") for line in lines
    )
    assert any("python -m launch resume=RUN_DIR" in line for line in lines)


def test_help_answers_once_under_torchrun() -> None:
    done = torchrun(3, "-m", "harness", "--help")
    assert done.returncode == 0
    assert done.stdout.count("Axes, each a list of options") == 1


def test_cfg_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "experiment=smoke", "iterations=7", "reduction=[mean]"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["iterations"], list(printed["reduction"])) == ("smoke", 7, ["mean"])


def test_a_sweep_is_every_combination() -> None:
    jobs = split_sweep(["torchrun.nproc_per_node=1,2", "reduction=[sum,mean]", "+env.NCCL_ALGO=Ring,Tree"])
    assert jobs == [
        [f"torchrun.nproc_per_node={ranks}", "reduction=[sum,mean]", f"+env.NCCL_ALGO={algorithm}"]
        for ranks in (1, 2)
        for algorithm in ("Ring", "Tree")
    ]


def test_every_job_of_a_sweep_runs_and_the_worst_status_is_its_own(tmp_path: Path) -> None:
    overrides = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", f"results_dir={tmp_path}")
    done = launch("--multirun", *overrides, "torchrun.nproc_per_node=1,99,2")
    assert done.returncode == 2
    assert "global_batch_size=16 is smaller than the world size 99" in done.stderr
    runs = sorted(path for path in (tmp_path / "smoke").iterdir() if not path.is_symlink())
    assert [load_run(path).environment["world_size"] for path in runs] == [1, 2]
    closing = done.stdout[done.stdout.index("3 of 3 runs") :]
    assert [word in closing for word in ("0 ok", "2 refused", "1 failed")] == [True, True, False]


def test_four_ranks_of_torchrun_make_one_run(tmp_path: Path) -> None:
    overrides = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", f"results_dir={tmp_path}")
    done = torchrun(4, "-m", "harness", *overrides)
    assert done.returncode == 0, done.stderr
    run_dir, latest = sorted((tmp_path / "smoke").iterdir(), key=lambda path: path.is_symlink())
    assert latest.resolve() == run_dir
    run = load_run(run_dir)
    assert (run.environment["world_size"], set(run.samples["rank"])) == (4, {0, 1, 2, 3})
    assert len(run.environment["ranks"]) == 4


def test_an_experiment_s_parameters_leave_with_their_option(tmp_path: Path) -> None:
    """What an experiment sets of an option that the user leaves out is left out; a typo in one's own experiment is refused."""
    composed = compose_config(["experiment=reduction_modes", "workload=[cnn_digits]"], nproc_per_node=2)
    assert list(composed.workload) == ["cnn_digits"]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nworkload:\n  mlp_digist:\n    samples: 12\n")
    with pytest.raises(RefusedError, match="mlp_digist: has no _target_"):
        configure(["experiment=typo"], str(tmp_path))


def test_a_workload_of_ones_own(tmp_path: Path) -> None:
    """The example of docs/own_model.md, from a copy: nothing of it is known to the harness."""
    example = shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf")
    done = launch("--config-dir", str(example), "workload=[diabetes]", f"results_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "default" / "latest")
    assert len(run.cases) == len(AVAILABLE["reduction"])
    assert set(run.cases.status) == {"ok"}
    assert (run.discrepancies.query("against == 'reference' and parameter == ''").relative_l2 < 1e-6).all()


BROKEN = {
    "unequal": "import torch, os\ndef load(): return torch.rand(64, 10) + int(os.environ['RANK']), torch.rand(64, 1)",
    "raising": "def load(): raise OSError('the disk is gone')",
    "ragged": "import torch\ndef load(): return torch.rand(64, 10), torch.rand(63, 1)",
}
REASONS = {
    "unequal": "the batch of rank 1 differs from rank 0's",
    "raising": "OSError: the disk is gone",
    "ragged": "one number of samples",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_workload_that_cannot_serve_is_refused(tmp_path: Path, name: str) -> None:
    example = shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf")
    (example / "diabetes.py").write_text(BROKEN[name])
    done = launch("--config-dir", str(example), "workload=[diabetes]", f"results_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    assert REASONS[name] in done.stderr
    assert "Traceback" not in done.stderr


def test_user_code_is_not_run_by_the_launcher(tmp_path: Path) -> None:
    example = shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf")
    (example / "diabetes.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef load(): ...")
    done = launch("--config-dir", str(example), "workload=[diabetes]", "dry_run=true", cwd=tmp_path)
    assert done.returncode == 0
    assert not (tmp_path / "ran").exists()


NAN = """
import torch
def load():
    inputs = torch.rand(64, 10)
    inputs[5, 3] = float("nan")
    return inputs, torch.rand(64, 1)
"""
FAILING = """
import os, torch
class Model(torch.nn.Linear):
    calls = 0
    def forward(self, x):
        Model.calls += 1
        if x.dtype == torch.float32 and os.environ["RANK"] == "1" and Model.calls > 2:
            raise RuntimeError("planted")
        return super().forward(x)
def load():
    return torch.rand(64, 10), torch.rand(64, 1)
"""


def test_a_nan_is_told_where_it_arose_and_is_no_exit(tmp_path: Path) -> None:
    example = shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf")
    (example / "diabetes.py").write_text(NAN)
    overrides = ("workload=[diabetes,mlp_digits]", "reduction=[sum,mean]", f"results_dir={tmp_path}")
    done = launch("--config-dir", str(example), *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "default" / "latest")
    bad = run.findings[run.findings.kind == "nonfinite"]
    assert set(bad.case_id.str.split(".").str[0]) == {"diabetes"}
    assert "11 elements of the gradient are NaN or Inf, in weight, bias" in done.stdout


def test_a_case_that_fails_on_one_rank_fails_and_the_others_go_on(tmp_path: Path) -> None:
    example = shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf")
    (example / "diabetes.py").write_text(FAILING)
    path = example / "workload" / "diabetes.yaml"
    path.write_text(path.read_text().replace("torch.nn.Linear", "diabetes.Model"))
    aggregation = "aggregation=[all_reduce,local]"  # in `local` the peer waits on the control group
    overrides = (
        "workload=[diabetes,mlp_digits]",
        "reduction=[sum,mean]",
        aggregation,
        "deadline_s=5",
        f"results_dir={tmp_path}",
    )
    done = launch("--config-dir", str(example), *overrides, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    cases = load_run(tmp_path / "default" / "latest").cases.set_index("workload")
    assert set(cases.status["diabetes"]) == {"failed"}
    assert cases.reason["diabetes"].str.contains(r"rank 1 on \S+, in phase [\w-]+: RuntimeError: planted").all()
    assert set(cases.status["mlp_digits"]) == {"ok"}
    assert "planted" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
