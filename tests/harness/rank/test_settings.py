"""Cases do not depend on what the code of another one has changed."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.rank import settings
from harness.rank.settings import SETTINGS, Setting, Settings, restored
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


OTHERS: dict[str, object] = {
    "default device": torch.device("meta"),
    "default dtype": torch.float64,
    "anomaly mode and its check for NaN": (True, False),
    "autocast dtype of cpu": torch.float16,
    "autocast dtype of cuda": torch.bfloat16,
    "float32 matmul precision": "high",
}
"""Values other than torch's own, of settings that are neither flags nor numbers."""
UNTRIED = {"inference mode", "CUDA device", "cuDNN's benchmark_limit", "allowed CPUs", "flushing of denormal numbers"} | {
    "deterministic algorithms"  # torch imports its compiler for it: 1.2 s
}
"""Settings that some machines do not have, or that the leaking workload changes in a process of its own."""


def another(name: str, value: object) -> object:
    """A value of the setting other than `value`; None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return value[:1] if len(value) > 1 else None
    if name.startswith("fp32_precision of "):
        return "ieee" if value == "tf32" else "tf32"
    return OTHERS.get(name)


def test_every_setting_that_can_be_changed_here_is_put_back() -> None:
    """Each of them, to another value of its kind: by its own writer, and back."""
    tried, before = set[str](), Settings.now()
    for name, read, write in SETTINGS:
        value = read()
        other = None if name in ("inference mode", "CUDA device") else another(name, value)
        if other is None:
            continue
        write(other)
        if read() != value:
            tried.add(name)
            assert before.put_back(), name
        assert read() == value, name
    assert before.put_back() == []
    assert {name for name, _, _ in SETTINGS} - tried <= UNTRIED


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], object]], dict[str, int]]:
    """Two settings that start at 0, the first with this writer; returns their values."""

    def plant(write: Callable[[Any], object]) -> dict[str, int]:
        values = {"first": 0, "second": 0}
        settings: list[Setting] = [
            ("first", lambda: values["first"], write),
            ("second", lambda: values["second"], lambda value: values.update(second=value)),
        ]
        monkeypatch.setattr("harness.rank.settings.SETTINGS", settings)
        return values

    return plant


def test_a_setting_that_cannot_be_put_back_hides_no_error_and_keeps_no_other_one(
    planted: Callable[[Callable[[Any], object]], dict[str, int]],
) -> None:
    def refuse(value: object) -> None:
        raise OSError(22, "Invalid argument")

    values, changed = planted(refuse), list[str]()
    with pytest.raises(ValueError, match="of the user"), restored(changed):
        values.update(first=1, second=1)
        raise ValueError("of the user")
    assert values == {"first": 1, "second": 0}
    assert changed == [
        "first from 0 to 1 (and could not be put back: OSError: [Errno 22] Invalid argument)",
        "second from 0 to 1",
    ]


@pytest.mark.parametrize(("initialized", "number"), [(False, 0), (True, 3)])
def test_reading_the_device_does_not_initialize_cuda(monkeypatch: pytest.MonkeyPatch, initialized: bool, number: int) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: initialized)
    monkeypatch.setattr("torch.cuda.current_device", lambda: asked.append(3) or 3)
    read = next(read for name, read, _ in settings._settings() if name == "CUDA device")
    assert read() == number
    assert bool(asked) == initialized


def test_generators_go_on_from_where_they_were() -> None:
    before = Settings.now()
    drawn = [(torch.rand(1).item(), random.random(), np.random.random()) for _ in range(2) if before.put_back() == []]
    assert drawn[0] == drawn[1]
