"""The rehearsal of the first contact with a GPU, and the tables that are made of what it leaves."""

import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from harness.rank.preflight import SHARING
from tests import rehearsal, test_gpu
from tests.gpu import page
from tests.rehearsal import SKIPPED
from tests.running import ENVIRONMENT, HANG_S, ROOT

SCRIPT = ROOT / "tests" / "gpu" / "first_contact.sh"
SUMMARY = """setup                    1 GPUs         3s  t=3s
smoke                    rc=0          16s  t=25s
two_nccl                 skipped        0s  t=26s
tests                    rc=124       200s  t=226s
billion                  no time        0s  t=470s
"""
JUNIT = f"""<testsuites><testsuite><testcase name="test_every_mode_on_cuda[nccl-1]" time="3.2"/>
<testcase name="test_every_mode_on_cuda[gloo-2]" time="4.0"><failure message="assert 1 == 2">trace</failure></testcase>
<testcase name="test_traces_on_cuda" time="1"><properties><property name="{SKIPPED}" value="kernels"/></properties></testcase>
</testsuite></testsuites>"""


@pytest.mark.full
def test_every_step_of_the_rehearsal_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limits are ten times those of a rehearsal by hand: the machine may be busy."""
    environment = {**ENVIRONMENT, "REHEARSE": "1", "OUT": str(tmp_path), "SCALE": "10", "T_END": str(int(4 * HANG_S))}
    done = subprocess.run(["bash", SCRIPT], env=environment, capture_output=True, text=True, timeout=4 * HANG_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcomes = dict(re.findall(r"^(\w+) +(rc=\d+|skipped|no time)", (tmp_path / "summary.txt").read_text(), re.MULTILINE))
    assert set(outcomes) == set(_steps())
    assert set(outcomes.values()) == {"rc=0"}
    assert page.main(tmp_path) == 0
    shown = capsys.readouterr().out
    for title in ("Machine", "What ran", "Steps", "Runs", "1.0e9 parameters", "Lines that a rehearsal skipped"):
        assert f"### {title}\n" in shown
    assert os.uname().nodename not in shown


def _steps() -> list[str]:
    (listed,) = re.findall(r'^ALL="([^"]*)"', SCRIPT.read_text(), re.MULTILINE)
    return str(listed).split()


def test_every_step_is_listed_and_has_a_command() -> None:
    called = set(re.findall(r"(?:^|; |\]; then )\s*(?:step|measure|check) (\w+) ", SCRIPT.read_text(), re.MULTILINE))
    assert called | {"facts"} == set(_steps())


def test_without_a_gpu_the_first_contact_says_so(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "OUT": str(tmp_path / "out"), "PY": "true"}
    done = subprocess.run(
        ["bash", SCRIPT], env=environment | {"PY": str(_counts_no_gpu(tmp_path))}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "torch sees no GPU; REHEARSE=1 rehearses on the CPU\n"


def _counts_no_gpu(folder: Path) -> Path:
    """Stand-in for Python, which would take seconds to import torch."""
    python = folder / "python"
    python.write_text("#!/bin/sh\necho 0\n")
    python.chmod(0o755)
    return python


def test_tables_of_a_first_contact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "tests.xml").write_text(JUNIT)
    (tmp_path / "summary.txt").write_text(SUMMARY)
    with tarfile.open(tmp_path / "tests.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "tests", "tests")
    outcomes = list(page.read_junit(tmp_path / "tests" / "tests.xml"))
    assert page.tests_by_world(outcomes).iloc[0].tolist() == ["test_every_mode_on_cuda", "passed, 3 s", "failed, 4 s", ""]
    found = page.failures(outcomes, SUMMARY)
    assert found.values.tolist() == [
        ["test_every_mode_on_cuda gloo-2", "assert 1 == 2"],
        ["tests", "time limit"],
        ["billion", "no time"],
    ]
    assert page.steps(SUMMARY).values.tolist()[0] == ["smoke", "passed", 16]
    times = {"host, launch alone": 10.69, "events, idle device": 22.67, "events, device held first": 3.46}
    assert page.launch_table(f"TIMES add_, 1 KiB {json.dumps(times)}\n").values.tolist() == [
        ["add_, 1 KiB", 10.69, 22.67, 3.46]
    ]
    assert page.main(tmp_path) == 0
    assert "| test_traces_on_cuda any | kernels |" in capsys.readouterr().out


def test_overrides_are_smaller_in_a_rehearsal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "REHEARSED", False)
    assert rehearsal.smaller(["iterations=30", "seed=1", "seed=2"]) == ["iterations=30", "seed=1", "seed=2"]
    assert list(rehearsal.few(["seed=2"])) == []
    monkeypatch.setattr(rehearsal, "REHEARSED", True)
    assert set(rehearsal.smaller(["iterations=30", "seed=1", "seed=2"])) >= {"iterations=1", "seed=2"}
    assert rehearsal.smaller(["--config-dir", "planted", "seed=1"])[:2] == ["--config-dir", "planted"]
    assert list(rehearsal.few(["seed=2"])) == ["seed=2"]


def test_a_rehearsal_names_the_lines_that_it_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    item = SimpleNamespace(user_properties=[])
    monkeypatch.setattr(rehearsal, "REHEARSED", False)
    assert rehearsal.on_cuda("kernels are in the trace")
    rehearsal.note_skipped(cast(pytest.Item, item))
    assert item.user_properties == []
    monkeypatch.setattr(rehearsal, "REHEARSED", True)
    assert not any(rehearsal.on_cuda("kernels are in the trace") for _ in range(2))
    rehearsal.note_skipped(cast(pytest.Item, item))
    report = SimpleNamespace(nodeid="test_gpu.py::test", user_properties=[*item.user_properties, ("other", "x")])
    assert rehearsal.skipped_lines([cast(pytest.TestReport, report)]) == ["test_gpu.py::test: kernels are in the trace"]


def test_gpu_tests_use_every_size_that_there_are_gpus_for() -> None:
    assert test_gpu.nccl_worlds(0) == test_gpu.nccl_worlds(1) == test_gpu.nccl_worlds(2) == [("nccl", 2)]
    assert test_gpu.nccl_worlds(6) == [("nccl", 2), ("nccl", 4), ("nccl", 6)]
    assert test_gpu.nccl_worlds(8) == [("nccl", 2), ("nccl", 4), ("nccl", 8)]


def test_the_sweep_has_a_peer() -> None:
    """On one rank every question is skipped."""
    (mark,) = test_gpu.test_the_sweep_on_cuda.pytestmark  # type: ignore[attr-defined]
    assert all(ranks > 1 for _, ranks in mark.args[1])


def test_ranks_share_a_gpu_where_the_environment_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "REHEARSED", False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv(SHARING, raising=False)
    assert not _skips("nccl", 1)
    assert not _skips("gloo", 2)
    assert _skips("nccl", 2)
    monkeypatch.setenv(SHARING, "1")
    assert not _skips("nccl", 2)


def _skips(backend: str, ranks: int) -> bool:
    try:
        test_gpu.check_gpus(backend, ranks)
    except pytest.skip.Exception:
        return True
    return False
