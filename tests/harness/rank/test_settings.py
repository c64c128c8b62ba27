"""Cases do not depend on what the code of another one has changed."""

import random

import numpy as np
import pytest
import torch

from harness.rank.settings import SETTINGS, Settings
from tests.conftest import Measure

_YAML = """
{name}:
  _target_: harness.axes.workload.base.Workload
  model: {{_target_: tests.worlds.leaks.{model}, _partial_: true}}
  loss: {{_target_: torch.nn.MSELoss, _partial_: true}}
  data: {{_target_: tests.worlds.leaks.{data}, _partial_: true}}
"""
_BUILT = ("inference mode", "grad mode", "default device", "default dtype")
_RUN = (
    *("threads", "anomaly mode and its check for NaN", "deterministic algorithms", "float32 matmul precision"),
    *("autocast of cpu", "oneDNN", "cuDNN's benchmark", "flushing of denormal numbers"),
)


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Workloads that leak, that depend on it, and that have a part in eval mode; the option that names their folder."""
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "workload").mkdir()
    for name, model, data in (
        ("leaking", "Leaking", "leaking_data"),
        ("drawing", "Drawing", "data"),
        ("in_eval", "InEval", "data"),
    ):
        (folder / "workload" / f"{name}.yaml").write_text(_YAML.format(name=name, model=model, data=data))
    return f"--config-dir={folder}"


def test_a_leaking_workload_is_named_and_leaves_the_next_one_its_bits(measure: Measure, workloads: str) -> None:
    few = (workloads, "global_batch_size=8", "iterations=1", "reduction=[mean]")
    both = measure(*few, "workload=[leaking,drawing,in_eval]")
    alone = measure(*few, "workload=[drawing]")
    assert set(both.cases.status) == {"ok"}, list(both.cases.reason)
    bits = both.cases.set_index("workload").gradient_sha256
    assert bits["drawing"] == alone.cases.gradient_sha256[0]
    found = both.findings[both.findings.kind == "changed_settings"]
    assert list(found.case_id.str.split(".").str[0]) == ["leaking"]
    for setting in (*_BUILT, *_RUN):
        assert f"{setting} from " in found.statement.item(), setting
    assert "threads from 1 to 2 (ranks 0, 1)" in found.statement.item()


def test_every_setting_that_can_be_changed_here_is_put_back() -> None:
    """Each of them, to another value of its kind: by its own writer, and back."""
    others = {bool: lambda value: not value, int: lambda value: value + 1}
    before = Settings.now()
    for name, read, write in SETTINGS:
        value = read()
        if type(value) not in others or name in ("inference mode", "CUDA device"):
            continue
        write(others[type(value)](value))
        if read() != value:
            assert len(before.put_back()) == 1, name
        assert read() == value, name
    assert before.put_back() == []


def test_generators_go_on_from_where_they_were() -> None:
    before = Settings.now()
    drawn = [(torch.rand(1).item(), random.random(), np.random.random()) for _ in range(2) if before.put_back() == []]
    assert drawn[0] == drawn[1]
