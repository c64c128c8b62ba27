"""Environment variables that are written down, and those in which ranks differ."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.probes.control import Control
from harness.rank.environment import variables
from harness.rank.environment.masking import MASK
from harness.rank.environment.variables import by_value, differing, nccl_files, written_down


def control(*ranks: dict[str, str]) -> Control:
    """Ranks of which the last asks; the others have these variables."""
    others = [json.dumps(rank, sort_keys=True) for rank in ranks]

    def all_gather_text(text: str) -> list[str]:
        if text.startswith("{"):
            return [*others, text]
        return [*(variables.hashlib.sha256(other.encode()).hexdigest() for other in others), text]  # type: ignore[attr-defined]

    return cast(Control, SimpleNamespace(all_gather_text=all_gather_text))


def test_variables_of_every_layer_are_written_down_without_secrets() -> None:
    kept = dict.fromkeys(("FI_PROVIDER", "UCX_TLS", "NVIDIA_TF32_OVERRIDE", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"), "1")
    kept |= dict.fromkeys(("RCCL_MSCCL_ENABLE", "HSA_ENABLE_SDMA", "MIOPEN_FIND_MODE", "NCCL_ALGO"), "1")
    found = written_down({**kept, "HOME": "/root", "NIVIDIA": "1", "UCX_AUTH_KEY": "sesame"})
    assert found == {**kept, "UCX_AUTH_KEY": MASK}


def test_files_of_nccl_are_read_as_nccl_reads_them(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nccl.conf").write_text(
        "# site\nNCCL_ALGO=Tree\nNCCL_ALGO=Ring\nNCCL_IB_HCA = mlx5\nPASSWORD=x\nNCCL_TOKEN=sesame\n"
    )
    (tmp_path / ".nccl.conf").write_text("NCCL_PROTO=Simple\n")
    etc = {"NCCL_ALGO": "Tree", "NCCL_TOKEN": MASK}
    assert nccl_files({}, tmp_path, tmp_path) == {"/etc/nccl.conf": etc, "~/.nccl.conf": {"NCCL_PROTO": "Simple"}}
    (tmp_path / "other.conf").write_text("NCCL_PROTO=LL128\n")
    other = str(tmp_path / "other.conf")
    assert nccl_files({"NCCL_CONF_FILE": other}, tmp_path, tmp_path) == {"/etc/nccl.conf": etc, other: {"NCCL_PROTO": "LL128"}}
    assert nccl_files({}, tmp_path / "none", tmp_path / "none") == {}


def test_ranks_that_differ_in_a_variable_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {"/etc/nccl.conf": {"NCCL_ALGO": "Tree", "NCCL_PROTO": "LL"}, "~/.nccl.conf": {"NCCL_ALGO": "Ring"}}
    monkeypatch.setattr(variables, "nccl_files", lambda environment: conf)
    alike = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
    own = {
        "NCCL_PROTO": "Simple",
        "NCCL_DEBUG_FILE": "/tmp/3",
        "CUDA_VISIBLE_DEVICES": "3",
        "NCCL_SOCKET_IFNAME": "eth3",
        "HOME": "/",
    }
    assert differing(control(alike, alike), own) == {}
    other: dict[str, Any] = {**alike, "NCCL_PROTO": "LL", "TORCH_NCCL_BLOCKING_WAIT": "1"}
    assert differing(control(alike, other, alike), own) == {
        "NCCL_PROTO": {"Simple": "0,2-3", "LL": "1"},
        "TORCH_NCCL_BLOCKING_WAIT": {"not set": "0,2-3", "1": "1"},
    }


def test_names_of_equal_values_are_left_out() -> None:
    assert by_value([{"a": "1"}, {"a": "1"}]) == {}
