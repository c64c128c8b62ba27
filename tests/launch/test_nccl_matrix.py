"""nccl_matrix: which runs it makes, what it refuses, and the runs themselves over gloo."""

import re
from pathlib import Path
from typing import Any

import pytest

from harness.report.frame import load_run
from harness.schema.arguments import NcclMatrixConfig
from harness.schema.config import BenchmarkConfig, dump_config
from harness.schema.nccl_settings import Combination
from launch.__main__ import main
from launch.compose import compose_request
from launch.matrix import matrix_runs
from launch.verdict import FAILURE, REFUSAL, Verdict
from tests.launch.standins import DONE, StandIn
from tests.running import launch

SMALL = ("experiment=nccl_matrix", "torchrun.nproc_per_node=2", "device=cpu", "probe=[]", "iterations=2")


def _runs(*overrides: str) -> list[tuple[Combination, BenchmarkConfig]]:
    request = compose_request([*SMALL, *overrides], {})
    return matrix_runs(request.config, request.arguments.nccl_matrix)


def test_the_first_run_leaves_the_choice_to_nccl() -> None:
    runs = _runs("nccl_matrix.algorithms=[RING,TREE]", "nccl_matrix.channels=[0,8]")
    asked = [combination for combination, _ in runs]
    protocols = ("LL", "LL128", "SIMPLE")
    assert asked == [
        Combination(),
        *(
            Combination(algorithm, protocol, channels)
            for algorithm in ("RING", "TREE")
            for protocol in protocols
            for channels in (0, 8)
        ),
    ]
    own = runs[2][1]
    assert own.env == {"NCCL_ALGO": "RING", "NCCL_PROTO": "LL", "NCCL_MIN_NCHANNELS": "8", "NCCL_MAX_NCHANNELS": "8"}
    assert "nccl_matrix:" not in dump_config(own), "config.yaml of a run repeats that run alone"


def test_own_choice_alone_is_one_run() -> None:
    runs = _runs(*(f"nccl_matrix.{key}=[]" for key in ("algorithms", "protocols")), "nccl_matrix.channels=[0]")
    assert [combination for combination, _ in runs] == [Combination()]


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"algorithms": ["RING", "RING"]}, "nccl_matrix.algorithms=['RING', 'RING']: a value occurs twice"),
        ({"protocols": ["R/G"]}, "nccl_matrix.protocols='R/G': not a value of NCCL"),
        ({"channels": [65]}, "nccl_matrix.channels=65: out of range; accepted: whole numbers from 1 to 64, or 0"),
        ({"algorithms": [f"A{n}" for n in range(500)], "channels": [0, 1, 2]}, "more than 1000 combinations"),
    ],
)
def test_unfit_lists(lists: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        NcclMatrixConfig(**lists)


REFUSED = {
    "nccl_matrix.channels=[[1]]": "holds a list",
    "+env.NCCL_PROTO=LL": "env.NCCL_PROTO with nccl_matrix",
    "world_sizes=[1,2]": "world_sizes with nccl_matrix",
    "--base --new sync=[barrier]": "use +env.NCCL_ALGO=RING",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refusals(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, f"results_dir={tmp_path}", *line.split()]) == REFUSAL
    printed = capsys.readouterr().err
    assert printed.count("reducebench: ") == 1
    assert REFUSED[line] in printed
    assert list(tmp_path.iterdir()) == []


def test_an_exported_setting_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    assert main([*SMALL, f"results_dir={tmp_path}"]) == REFUSAL
    assert "NCCL_ALGO=Tree is exported" in capsys.readouterr().err


ONE = ("nccl_matrix.algorithms=[RING,NVLS]", "nccl_matrix.protocols=[]", "nccl_matrix.channels=[]")
ENDED = Verdict(REFUSAL, ("pre-flight: NCCL error: invalid usage",))


def test_a_refused_combination_is_a_row_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.job.run_launch", StandIn(verdicts=[DONE, DONE, ENDED]))
    assert main([*SMALL, *ONE, f"results_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "run 3 of 3: NCCL_ALGO=NVLS" in printed
    runs = [load_run(path) for path in sorted((tmp_path / "nccl_matrix").iterdir()) if not path.is_symlink()]
    assert [run.config.env.get("NCCL_ALGO") for run in runs] == [None, "RING", "NVLS"]
    assert runs[2].failures[0]["culprits"][0]["how"] == "refused: pre-flight: NCCL error: invalid usage"
    table = printed[printed.index("NCCL: algorithm, protocol, channels") :]
    assert "invalid usage" in table
    assert "Across runs" not in printed
    assert "invalid usage" in (runs[2].path / "report" / "nccl_matrix.md").read_text()
    assert (runs[2].path / "report" / "nccl_matrix.csv").read_text().count("\n") == 1 + len(runs)
    assert f"to show it again: python -m harness.report show {runs[0].path} " in printed


@pytest.mark.parametrize(
    ("verdicts", "status", "started"),
    [([ENDED], REFUSAL, 1), pytest.param([DONE, Verdict(FAILURE, ("died",))], 0, 3, marks=pytest.mark.full)],
)
def test_without_the_first_run_there_is_no_matrix(
    verdicts: list[Verdict], status: int, started: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = StandIn(verdicts=verdicts)
    monkeypatch.setattr("launch.job.run_launch", standin)
    assert main([*SMALL, *ONE, f"results_dir={tmp_path}"]) == status
    assert len(standin.launched) == started


@pytest.mark.full
def test_the_matrix_over_gloo(tmp_path: Path) -> None:
    few = ("nccl_matrix.algorithms=[RING,TREE]", "nccl_matrix.protocols=[SIMPLE]", "nccl_matrix.channels=[]")
    small = ("device=cpu", "backend=gloo", "probe.collectives.most_bytes=65536", "torchrun.nproc_per_node=2")
    done = launch("experiment=nccl_matrix", *few, *small, f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    runs = [load_run(path) for path in sorted((tmp_path / "nccl_matrix").iterdir()) if not path.is_symlink()]
    assert [run.config.env.get("NCCL_ALGO", "") for run in runs] == ["", "RING", "TREE"]
    assert len({run.cases.gradient_sha256[0] for run in runs}) == 1
    assert "the backend is gloo: it ignores NCCL's settings" in done.stdout
    assert done.stdout.count("ignored by gloo") == 3
    assert all(run.nccl is not None and "there is no NCCL to log" in run.nccl.reason for run in runs)
