"""The sampler as a process, over a stand-in for NVML; its samples in a run's table; its failures, which cost no run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from harness.probes.control import Control
from harness.rank.environment import nvml, sampler
from harness.rank.environment.sampler import Reading, Sample, Sampler
from harness.rank.memory import DeviceMemory
from harness.rank.process_group import World
from harness.rank.telemetry import Sampling, Telemetry
from harness.report.frame import load_run
from harness.schema.case import Case
from harness.schema.run_dir import RunDir
from tests.conftest import shown
from tests.running import HANG_S, wait_until
from tests.worlds.pool import Pool

STANDINS = str(Path(__file__).parents[2] / "standins")
BUSY: dict[str, Any] = {"sm_mhz": 1980, "power_mw": 650_400, "temperature_c": 61, "utilization": 97, "reasons": 0}
CASE = Case("mlp_digits", "sum", "global_mean", "even", "flat", "none", "fp32")


class Script:
    """Answers of the stand-in."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, **gpus: dict[str, Any]) -> None:
        """Replace it, at once for a reader."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(gpus))
        part.replace(self.path)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put the stand-in in the place of NVML, for this process and those that it starts."""
    monkeypatch.setenv("NVML_SCRIPT", str(tmp_path / "nvml.json"))
    monkeypatch.setenv("PYTHONPATH", STANDINS)
    monkeypatch.syspath_prepend(STANDINS)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    written = Script(tmp_path / "nvml.json")
    written.set(one=BUSY)
    return written


@pytest.fixture
def telemetry(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """Of a rank alone on its host, whose GPU is the stand-in's."""
    monkeypatch.setattr("harness.rank.telemetry.gpu_uuid", lambda device: "one")
    opened = Telemetry.open(alone(), 50)
    yield opened
    opened.close()


def alone() -> World:
    world = SimpleNamespace(rank=0, size=1, ranks_per_node=1, device=torch.device("cpu"), control=Control(None, 0, 1))
    return cast(World, world)


def sampled(telemetry: Telemetry, begin: float) -> dict[str, Any]:
    """Row of a case whose first visit begins then, with as many visits as it takes to have three samples."""
    found, deadline = 0, time.monotonic() + HANG_S
    while found < 3 and begin < deadline:
        time.sleep(0.1)
        telemetry.visited(CASE, (begin, now := time.monotonic()), last=False)
        found, begin = telemetry._figures[CASE.case_id]["one"]["samples"], now
    (row,) = telemetry.rows(CASE, DeviceMemory(3 << 30, 2))
    return vars(row)


def test_samples_of_a_real_sampler_reach_the_row_of_their_case(telemetry: Telemetry, script: Script) -> None:
    script.set(one={**BUSY, "sm_mhz": 1410, "reasons": 4})
    row = sampled(telemetry, time.monotonic())
    assert row["samples"] > 2
    assert row["idle"] == 0
    assert {row[f"sm_mhz_{what}"] for what in ("min", "median", "max")} == {1410.0}
    assert (row["memory_mhz_median"], row["power_w_max"], row["temperature_c_max"]) == (2619.0, 650.0, 61.0)
    assert (row["slowed_by_power"], row["slowed_by_heat"], row["slowed_by"]) == (1.0, 0.0, "SwPowerCap 100.0%")
    assert (row["reserved_bytes"], row["alloc_retries"]) == (3 << 30, 2)


def test_the_clock_of_an_idle_gpu_is_not_that_of_the_case(telemetry: Telemetry, script: Script) -> None:
    script.set(one={**BUSY, "sm_mhz": 345, "reasons": 1, "old": True})
    row = sampled(telemetry, time.monotonic())
    assert row["idle"] == row["samples"] > 2
    assert all(row[name] != row[name] for name in ("sm_mhz_median", "slowed_by_power", "utilization_median"))


def test_the_sampler_imports_no_torch_gives_way_and_ends_with_its_parent(script: Script) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, sys.argv[1], str(os.getpid()), '50', '0', 'one'], stdin=subprocess.PIPE)\n"
        "heir = subprocess.Popen(['sleep', '900'], pass_fds=[child.stdin.fileno()])\n"
        "print(child.pid, heir.pid, flush=True)\n"
        "time.sleep(900)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, sampler.__file__], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, heir = map(int, parent.stdout.readline().split())
    assert wait_until(lambda: os.getpriority(os.PRIO_PROCESS, pid) == 19, HANG_S)
    if os.sched_getaffinity(0) > {0}:
        assert wait_until(lambda: 0 not in os.sched_getaffinity(pid), HANG_S), "the rank has CPU 0"
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert wait_until(lambda: not runs(pid), HANG_S), "though another child holds its pipe"
    finally:
        os.kill(heir, signal.SIGKILL)


def runs(pid: int) -> bool:
    """False also for a process that has ended and that no process has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("harm", ["killed", "stopped", "absent"])
def test_a_sampler_that_fails_costs_no_run_and_says_why(
    telemetry: Telemetry, harm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = telemetry.sampling
    assert sampling is not None
    assert sampling.process is not None
    if harm == "absent":
        sampling.end()
        monkeypatch.setattr(sys, "executable", "/no/such/program")
        sampling.process = type(sampling).start(["one"], 50, {0}).process
    else:
        monkeypatch.setattr("harness.rank.telemetry._PATIENCE_S", 0.1)
        sampling.process.send_signal(signal.SIGKILL if harm == "killed" else signal.SIGSTOP)
    telemetry.visited(CASE, (0.0, time.monotonic()), last=True)
    (row,) = telemetry.rows(CASE, None)
    assert row.samples == 0
    assert sampling.process is None, "and nothing of it is left"
    why = {"killed": "Error", "stopped": "no answer in 0.1 s", "absent": "cannot be started"}[harm]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reducebench: from now on GPUs are not sampled: ")
    assert why in line


def test_a_sampler_that_cannot_be_ended_is_not_waited_for() -> None:
    """As one that stands in a call of the driver: SIGKILL does not end it."""

    class Stuck:
        stdin = stdout = None

        def kill(self) -> None:
            """Has no effect."""

        def wait(self, timeout: float) -> None:
            raise subprocess.TimeoutExpired("sampler", timeout)

    sampling = Sampling(Stuck())  # type: ignore[arg-type]
    sampling.end()
    assert sampling.process is None


def test_ranks_without_a_uuid_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """ROCm gives none."""
    monkeypatch.setattr("harness.rank.telemetry.gpu_uuid", lambda device: None)
    monkeypatch.setattr("harness.rank.telemetry.Gpu.of", lambda device: None)
    world = alone()
    world.device = torch.device("cuda")
    telemetry = Telemetry.open(world, 10)
    (row,) = telemetry.rows(CASE, DeviceMemory(5, 1))
    assert (row.samples, row.uuid, row.reserved_bytes, row.alloc_retries) == (0, "", 5, 1)


def test_nothing_is_started_without_a_gpu_or_without_nvml(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Telemetry.open(alone(), 10).sampling is None
    assert Telemetry.open(alone(), 10).rows(CASE, None) == []
    monkeypatch.setattr("harness.rank.telemetry.gpu_uuid", lambda device: "one")
    assert Telemetry.open(alone(), 0).sampling is None, "sample_hz=0"
    monkeypatch.delenv("NVML_SCRIPT")
    without = Telemetry.open(alone(), 10)
    assert without.sampling is None
    assert [(row.samples, row.uuid) for row in without.rows(CASE, None)] == [(0, "one")]


def test_windows_of_several_visits_add_up_and_what_lies_between_is_forgotten() -> None:
    kept = Sampler(["one"], list)
    reading = Reading(1000, 2000, 300, 50, 90, ("SwPowerCap",))
    kept.waiting = [Sample(at, at + 0.01, [reading]) for at in (0.5, 1.5, 1.995, 2.5, 3.5)]
    first = kept.answer({"case": "a", "begin": 1.0, "end": 2.0, "last": False})
    assert first["one"]["samples"] == 1, "one before, and one that ended after the window"
    assert len(kept.waiting) == 2
    both = kept.answer({"case": "a", "begin": 3.0, "end": 4.0, "last": True})
    assert (both["one"]["samples"], both["one"]["sm_mhz_median"], both["one"]["reasons"]) == (2, 1000, {"SwPowerCap": 2})
    assert kept.answer({"case": "a", "begin": 5.0, "end": 6.0, "last": True})["one"]["samples"] == 0


def test_samples_that_wait_are_bounded_and_spread_over_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_MOST", 100)
    kept = Sampler(["one"], lambda: [Reading(1, 1, 1, 1, 1)])
    began = time.monotonic()
    for _ in range(1000):
        kept.sample()
        assert len(kept.waiting) < 100
    assert len(kept.waiting) > 25
    assert kept._step == 16
    (figures,) = kept.answer({"case": "a", "begin": began, "end": time.monotonic(), "last": True}).values()
    assert figures["samples"] > 25


def test_reasons_by_their_older_and_newer_names(script: Script) -> None:
    found = nvml.start_nvml()
    assert nvml._reasons(found) is nvml._reasons(found), "looked up once: it takes 0.7 ms"
    for old in (True, False):
        script.set(one={**BUSY, "reasons": 69, "old": old})
        bits = nvml.reason_bits(found, "one")
        assert bits == 69
        assert nvml.slowdowns(found, bits) == ["SwPowerCap", "HwThermalSlowdown"]
        assert nvml.is_idle(found, bits)
    assert nvml.find_device(found, "another") is None
    assert nvml.whole_device(found, "one") == "one"


@pytest.mark.parametrize("ranks", [2])
def test_the_slow_gpu_of_a_run_is_named(worlds: Pool, ranks: int, tmp_path: Path) -> None:
    """Two ranks with a GPU each, as the stand-in has them; the whole way from the sampler to the report."""
    slow = {**BUSY, "sm_mhz": 1410, "reasons": 64}
    script = {"gpu0": BUSY, "gpu1": slow}
    path = worlds.run(ranks, "tests.worlds.telemetry:measure", script, STANDINS, str(tmp_path), str(tmp_path / "nvml.json"))
    assert RunDir.open(path).table("devices").is_dir()
    finished = shown(load_run(path))
    rows = finished.run.devices.set_index("rank")
    assert rows.uuid.to_dict() == {0: "gpu0", 1: "gpu1"}
    assert (rows.samples >= 5).all()
    assert rows.sm_mhz_median.to_dict() == {0: 1980.0, 1: 1410.0}
    (said,) = [line for line in finished.output.splitlines() if line.startswith("(!) Rank 1's GPU ran at")]
    assert "median SM clock of 1410 MHz" in said
    assert "28.8% below the others' 1980 MHz" in said
    assert "(clocks reduced: HwThermalSlowdown 100.0%; 650 W at most; 61 C at most; " in said
    assert "GPUs: mlp_digits" in finished.output
