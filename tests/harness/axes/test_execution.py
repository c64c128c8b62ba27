"""torch.compile is skipped, by name and on all ranks, where a host lacks the compiler that it needs."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.axes.execution.compile import CompileExecution
from harness.schema.context import Context
from tests.conftest import Measure

CPU = Context(
    device="cpu",
    backend="gloo",
    world_size=2,
    spans_ranks=True,
    averages=False,
    in_backward=False,
    coupling=(),
    shard_sizes=(4, 4),
    denominators=(4.0, 4.0),
)
CUDA = replace(CPU, device="cuda", backend="nccl")
LACKING = """
import os
from unittest.mock import patch

from harness.axes.execution.compile import CompileExecution


class LackingExecution(CompileExecution):
    def unsupported(self, context):
        own = {"PATH": ""} if os.environ["RANK"] == "1" else {}
        with patch.dict(os.environ, own):
            return super().unsupported(context)
"""


def has(folder: Path, *names: str) -> str:
    """Make programs of these names; return the folder as a PATH."""
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("context", "programs", "environment", "reason"),
    [
        (CPU, ["g++"], {}, None),
        (CPU, ["gcc"], {}, "C++ compiler (g++, or CXX)"),
        (CPU, ["gcc", "other"], {"CXX": "other"}, None),
        (CPU, ["g++"], {"CXX": "missing"}, "C++ compiler"),
        (CUDA, ["gcc"], {}, None),
        (CUDA, ["clang"], {}, None),
        (CUDA, ["g++"], {}, "C compiler (gcc or clang, or CC)"),
        (CUDA, ["other"], {"CC": "other"}, None),
    ],
)
def test_compile_needs_the_compiler_of_its_device(
    context: Context, programs: list[str], environment: dict[str, str], reason: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", has(tmp_path, *programs))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = CompileExecution().unsupported(context)
    assert (found is None) if reason is None else reason in str(found)


def test_a_case_is_skipped_on_all_ranks_where_one_lacks_something(measure: Measure, tmp_path: Path) -> None:
    (tmp_path / "execution").mkdir()
    (tmp_path / "lacking.py").write_text(LACKING)
    (tmp_path / "execution" / "lacking.yaml").write_text("lacking: {_target_: lacking.LackingExecution}\n")
    few = ("workload=[mlp_digits]", "reduction=[mean]", "iterations=1", "warm_up=0")
    run = measure(f"--config-dir={tmp_path}", "execution=[lacking,eager]", *few)
    cases = run.cases.set_index("execution")
    assert cases.status.to_dict() == {"lacking": "skipped", "eager": "ok"}
    assert cases.reason["lacking"].startswith("rank 1: torch.compile needs a C++ compiler (g++, or CXX)")
