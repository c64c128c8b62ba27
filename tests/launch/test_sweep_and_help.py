"""--help, --cfg, --multirun, and --config-dir with classes of the user."""

import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from harness.report.frame import load_run
from harness.report.render import show
from harness.schema.case import AXES, TABLE
from harness.schema.launcher import KINDS
from harness.schema.refusal import RefusedError
from launch.__main__ import main
from launch.compose import available_options, compose_config, split_sweep
from launch.help import help_text
from launch.job import configure
from launch.verdict import FAILURE, Verdict
from tests.conftest import Measure
from tests.launch.standins import DONE, StandIn
from tests.options import AVAILABLE
from tests.running import ENVIRONMENT, ROOT, launch
from tests.worlds.pool import Pool


def test_help_lists_every_axis_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for axis in AXES:
        line = next(line for line in lines if line.startswith(f"  {axis} "))
        assert line.split(maxsplit=1)[1] == f"{', '.join(AVAILABLE[axis])}: {TABLE[axis].help}"
    assert any("iterations=10" in line for line in lines)


IMPORTED = """
import sys
from launch.__main__ import main

status = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg",), ("dry_run=true",)], ids=" ".join)
def test_the_launcher_answers_without_what_takes_long_to_import(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not {"torch", "pandas", "pyarrow", "numpy", "matplotlib", "scipy", "sklearn"} & set(done.stderr.split())


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


def test_help_lists_the_arguments_of_the_command() -> None:
    text = help_text(available_options())
    assert "python -m launch --resume RUN_DIR" in text
    listed = text.partition("Arguments of the command, which are not written to config.yaml:\n")[2].partition("\n\n")[0]
    flags = ["--resume", "--accept-changes", "--accept-owner", "--dry-run", "--world-sizes"]
    assert [line.split()[0] for line in listed.splitlines() if line.startswith("  --")] == flags
    assert [line.split("=")[0].strip() for line in listed.splitlines()[len(flags) :]] == [
        f"nccl_matrix.{name}" for name in ("algorithms", "protocols", "channels")
    ]


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


SWEEP = ("--multirun", "experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", "torchrun.nproc_per_node=1,99,2")


def _check_sweep(status: int, output: str, errors: str, results: Path) -> None:
    assert status == 2
    assert "global_batch_size=16 is smaller than the world size 99" in errors
    runs = sorted(path for path in (results / "smoke").iterdir() if not path.is_symlink())
    assert [load_run(path).environment["world_size"] for path in runs] == [1, 2]
    closing = output[output.index("3 of 3 runs") :]
    assert [word in closing for word in ("0 ok", "2 refused", "1 failed")] == [True, True, False]


def test_every_job_of_a_sweep_runs_and_the_worst_status_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With rows that no rank has written."""
    monkeypatch.setattr("launch.job.run_launch", StandIn())
    status = main([*SWEEP, f"results_dir={tmp_path}"])
    _check_sweep(status, *capsys.readouterr(), tmp_path)


@pytest.mark.full
def test_a_sweep_by_command_line(tmp_path: Path) -> None:
    done = launch(*SWEEP, f"results_dir={tmp_path}")
    _check_sweep(done.returncode, done.stdout, done.stderr, tmp_path)


def test_a_sweep_ends_with_the_run_that_a_signal_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = StandIn(verdicts=[DONE, Verdict(FAILURE, ("ended by SIGINT",), stopped=True)])
    monkeypatch.setattr("launch.job.run_launch", stand_in)
    asked = ("experiment=smoke", "workload=[mlp_digits]", "reduction=[mean]", "seed=1,2,3")
    assert main(["--multirun", *asked, f"results_dir={tmp_path}"]) == 1
    assert len(stand_in.launched) == 2
    told = capsys.readouterr()
    assert "2 of 3 runs" in told.out
    assert "reducebench: ended by SIGINT" in told.err


def test_an_experiment_s_parameters_leave_with_their_option(tmp_path: Path) -> None:
    """What an experiment sets of an option that the user leaves out is left out; a typo in one's own experiment is refused."""
    composed = compose_config(["experiment=reduction_modes", "workload=[cnn_digits]"], nproc_per_node=2)
    assert list(composed.workload) == ["cnn_digits"]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text("# @package _global_\nworkload:\n  mlp_digist:\n    samples: 12\n")
    with pytest.raises(RefusedError, match="mlp_digist: has no _target_"):
        configure(["experiment=typo"], str(tmp_path))


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


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example of docs/own_model.md, from a copy: the harness knows nothing of it."""
    return Path(shutil.copytree(ROOT / "docs" / "example", tmp_path / "my_conf"))


@pytest.mark.parametrize("ranks", [2])
@pytest.mark.parametrize("name", BROKEN)
def test_a_workload_that_cannot_serve_is_refused(worlds: Pool, ranks: int, tmp_path: Path, example: Path, name: str) -> None:
    (example / "diabetes.py").write_text(BROKEN[name])
    asked = ["--config-dir", str(example), "workload=[diabetes]", f"results_dir={tmp_path / 'results'}"]
    (told,) = worlds.run(ranks, "tests.worlds.refusals:refusals", [asked])
    assert len(told) == ranks
    assert all(REASONS[name] in said for said in told)
    assert not list((tmp_path / "results").glob("default/2*/cases/*"))


def test_user_code_is_not_run_by_the_launcher(tmp_path: Path, example: Path) -> None:
    (example / "diabetes.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\ndef load(): ...")
    assert main(["--config-dir", str(example), "workload=[diabetes]", "dry_run=true"]) == 0
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


def test_workloads_of_ones_own_and_a_nan_that_is_told_where_it_arose(
    measure: Measure, example: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped example, and one whose data holds a NaN, which is no failure."""
    (example / "nans.py").write_text(NAN)
    text = (example / "workload" / "diabetes.yaml").read_text()
    (example / "workload" / "nans.yaml").write_text(text.replace("diabetes:", "nans:").replace("diabetes.load", "nans.load"))
    run = measure("--config-dir", str(example), "workload=[diabetes,nans]", "iterations=2", "warm_up=1")
    assert set(run.cases.status) == {"ok"}
    assert len(run.cases) == 2 * len(AVAILABLE["reduction"])
    rows = run.discrepancies.query("against == 'reference' and parameter == ''").merge(run.cases, on="case_id")
    assert (rows[rows.workload == "diabetes"].relative_l2 < 1e-6).all()
    assert (rows.workload == "diabetes").any()
    bad = run.findings[run.findings.kind == "nonfinite"]
    assert set(bad.case_id.str.split(".").str[0]) == {"nans"}
    assert not show([run.path]), "nothing failed"
    assert "11 elements of the gradient are NaN or Inf, in weight, bias" in capsys.readouterr().out


def test_a_case_that_fails_on_one_rank_fails_and_the_others_go_on(tmp_path: Path, example: Path) -> None:
    """A launch that ends with status 1 although no rank has died."""
    (example / "diabetes.py").write_text(FAILING)
    path = example / "workload" / "diabetes.yaml"
    path.write_text(path.read_text().replace("torch.nn.Linear", "diabetes.Model"))
    axes = ("workload=[diabetes,mlp_digits]", "reduction=[mean]", "aggregation=[all_reduce,local]")
    # in `local` the peer waits on the control group; in `all_reduce` until the deadline, which no healthy case comes near
    asked = (*axes, "deadline_s=30", f"results_dir={tmp_path}")
    done = launch("--config-dir", str(example), *asked, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    cases = load_run(tmp_path / "default" / "latest").cases.set_index("workload")
    assert set(cases.status["diabetes"]) == {"failed"}
    assert cases.reason["diabetes"].str.contains(r"rank 1 on \S+, in phase [\w-]+: RuntimeError: planted").all()
    assert set(cases.status["mlp_digits"]) == {"ok"}
    assert "planted" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


FAILING_SYNC = """
from harness.axes.sync.none import NoneSync


class FailingSync(NoneSync):
    "Fails on rank 1 when a case is prepared for the second time."

    made = 0

    def before_aggregate(self, group, device):
        self.made += 1
        if self.made == 2 and group.rank() == 1:
            raise RuntimeError("planted in the second round")
        return None
"""


def test_a_rank_that_fails_in_a_later_round_fails_its_case_alone(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "sync").mkdir()
    (tmp_path / "sync" / "failing.yaml").write_text("failing: {_target_: failing.FailingSync}\n")
    (tmp_path / "failing.py").write_text(FAILING_SYNC)
    rounds = ("order=interleaved", "rounds=3", "iterations=6", "until.relative=null")
    axes = ("workload=[mlp_digits]", "reduction=[mean]", "sync=[failing,none]")
    run = measure("--config-dir", str(tmp_path), *axes, *rounds)
    cases = run.cases.set_index("sync")
    assert cases.status.to_dict() == {"failing": "failed", "none": "ok"}
    assert re.match(r"rank 1 on \S+, in phase [\w-]+: RuntimeError: planted in the second round", cases.reason["failing"])
