"""What was seen around a run in, plain words out; and the environment as a table."""

from copy import deepcopy
from typing import Any

import pytest

from harness.report.environment import environment_table
from harness.report.trust import doubts

RANK = {"host": "node1", "pid": 10, "device": "cuda:0", "threads": 1, "memory_bytes": 80 * 2**30}
STATE = {"cpu_mhz": 3000.0, "sm_mhz": 1980, "slowed_s": {"power": 5.0, "heat": None}, "utilization_percent": 0}
HOST = {"rank": 0, "window_s": 10.0, "busy_s": 20.5, "own_s": 20.4, "stolen_s": 0.0, "others": [], "quota_throttles": 0}
QUIET: dict[str, Any] = {
    "argv": ["python", "-m", "launch"],
    "commit": "abc",
    "dirty": True,
    "hosts": [{"host": "node1", "cpus": 4, "governors": {"performance": 4}, "cpu_quota": None}],
    "ranks": [RANK, {**RANK, "pid": 11, "device": "cuda:1"}, {**RANK, "pid": 12, "device": "cuda:1"}],
    "conditions": [
        {
            "launch": 0,
            "began": "2026-11-20T12:00:00+00:00",
            "hosts": [HOST],
            "ranks": [
                {"before": STATE, "after": STATE, "device_processes": {"own_pid_seen": True, "others": []}} for _ in range(3)
            ],
        }
    ],
}


def changed(*places: str | int, **facts: object) -> dict[str, Any]:
    """QUIET, with other facts in one place."""
    environment = deepcopy(QUIET)
    spot: Any = environment
    for place in places:
        spot = spot[place]
    spot.update(facts)
    return environment


def test_nothing_is_said_of_a_quiet_run() -> None:
    assert doubts(QUIET) == []
    assert doubts({}) == []


@pytest.mark.parametrize(
    ("cpus", "threads", "said"),
    [
        (["0", "0", "1-3"], 1, ["ranks 0-1 have 2 threads and may run on 1 CPU (0): "]),
        (["0-1", "0-1", "0-1"], 1, ["ranks 0-2 have 3 threads and may run on 2 CPUs (0-1): "]),
        (
            ["0", "1", "2-3"],
            2,
            ["rank 0 has 2 threads and may run on 1 CPU (0): ", "rank 1 has 2 threads and may run on 1 CPU (1): "],
        ),
        (["0-1", "1-2", "0,2"], 2, ["ranks 0-2 have 6 threads and may run on 3 CPUs (0-2): "]),
        (["0", "0-3", "0-3"], 1, []),
        (["0", "1", "2,3"], 1, []),
    ],
)
def test_ranks_on_too_few_cpus_are_named(cpus: list[str], threads: int, said: list[str]) -> None:
    """Each rank's allowed CPUs against its threads, also where the host has CPUs enough."""
    environment = deepcopy(QUIET)
    environment["hosts"][0]["cpus"] = 8
    for rank, own in zip(environment["ranks"], cpus, strict=True):
        rank |= {"cpus": own, "threads": threads}
    found = doubts(environment)
    assert len(found) == len(said)
    for sentence, words in zip(found, said, strict=True):
        assert sentence.startswith(f"On node1, {words}")
        assert "threads_per_rank" in sentence


def test_ranks_of_another_host_share_no_cpu() -> None:
    environment = changed("ranks", 0, host="node2", cpus="0")
    environment["ranks"][1]["cpus"] = "0"
    assert doubts(environment) == []


ON_HOST = ("conditions", 0, "hosts", 0)
OF_RANK_1 = ("conditions", 0, "ranks", 1)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            changed(*ON_HOST, busy_s=30.4, others=[{"pid": 7, "name": "stress", "cpu_s": 9.5}]),
            "On node1, other processes took 1.00 of 4 CPUs during the run; of those that were there until its end: "
            "stress (pid 7, 0.95).",
        ),
        (changed(*ON_HOST, busy_s=30.4), "other processes took 1.00 of 4 CPUs during the run, none of them seen from here."),
        (changed(*ON_HOST, stolen_s=4.0), "The hypervisor took 10.0% of node1's CPU time"),
        (changed(*ON_HOST, quota_throttles=3), "node1's CPUs were held up by their quota 3 times."),
        (changed(*ON_HOST, cpu_throttles=2), "node1's CPUs were slowed down for heat 2 times."),
        (
            changed("hosts", 0, governors={"performance": 1, "powersave": 3}),
            "governor powersave on 3 of 4.",
        ),
        (changed("hosts", 0, cpu_quota=2.5), "On node1, 3 threads share a quota of 2.5 CPUs."),
        (changed("hosts", 0, cpus=2), "On node1, 3 threads share 2 CPUs."),
        (changed(*OF_RANK_1, after={**STATE, "cpu_mhz": 2000.0}), "Rank 1's CPU clock fell from 3000 to 2000 MHz."),
        (
            changed(*OF_RANK_1, after={**STATE, "slowed_s": {"power": 7.0, "heat": None}}),
            "Rank 1's GPU ran at reduced clocks: 2.0 s by power.",
        ),
        (
            changed(*OF_RANK_1, after={**STATE, "slowed_s": {"power": None}, "slowed_by": ["HwThermalSlowdown"]}),
            "Rank 1's GPU ran at reduced clocks: HwThermalSlowdown.",
        ),
        (
            changed(*OF_RANK_1, device_processes={"own_pid_seen": True, "others": [{"pid": 9, "name": "train", "bytes": 1}]}),
            "Rank 1's GPU is also used by train (pid 9).",
        ),
        (changed(*OF_RANK_1, before={**STATE, "utilization_percent": 40}), "Rank 1's GPU was 40 % busy before the run."),
    ],
)
def test_each_trouble_is_said(environment: dict[str, Any], said: str) -> None:
    (line,) = doubts(environment)
    assert said in line


def test_pids_of_another_namespace_are_no_neighbours() -> None:
    """The run's own processes, as a container's host numbers them."""
    listed = {"own_pid_seen": False, "others": [{"pid": 99, "name": None, "bytes": 1}]}
    assert doubts(changed(*OF_RANK_1, device_processes=listed)) == []


@pytest.mark.parametrize(
    ("before", "after", "fell"),
    [
        ({"utilization_percent": 90}, {"utilization_percent": 90}, True),
        ({"utilization_percent": 90, "idle": False}, {"utilization_percent": 90, "idle": True}, False),
        ({"utilization_percent": 90}, {"utilization_percent": 3}, False),
        ({"utilization_percent": 0}, {"utilization_percent": 90}, False),
    ],
)
def test_the_clock_of_an_idle_gpu_is_not_held_against_that_of_a_busy_one(
    before: dict[str, Any], after: dict[str, Any], fell: bool
) -> None:
    """An idle GPU lowers its clock by itself: 1980 MHz to 345 MHz on healthy ones."""
    environment = changed(*OF_RANK_1, before=STATE | before, after=STATE | {"sm_mhz": 345} | after)
    said = "Rank 1's GPU clock fell from 1980 to 345 MHz."
    assert (said in doubts(environment)) == fell
    assert said not in doubts(environment, sampled=True), "what was sampled during the cases takes its place"


def test_a_trouble_of_many_is_told_once_and_of_the_worst() -> None:
    environment = changed()
    for rank, clock in enumerate((1500.0, 990.0, 1700.0)):
        environment["conditions"][0]["ranks"][rank]["after"] = {**STATE, "cpu_mhz": clock}
    assert doubts(environment) == ["Rank 1's CPU clock fell from 3000 to 990 MHz. 2 other ranks likewise."]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"device_name": ["H200", "H100", "H200"], "compute_capability": ["9.0", "8.9", "9.0"]},
            "The GPUs of the ranks differ in model: H200 on ranks 0,2; H100 on rank 1. "
            "A step takes as long as on the slowest one.",
        ),
        (
            {"power_limit_w": [700.0, 700.0, 500.0]},
            "The GPUs of the ranks differ in power limit in W: 700.0 on ranks 0-1; 500.0 on rank 2. "
            "A step takes as long as on the slowest one.",
        ),
    ],
)
def test_gpus_of_several_kinds_are_named(facts: dict[str, list[Any]], said: str) -> None:
    environment = changed()
    for name, values in facts.items():
        for rank, value in zip(environment["ranks"], values, strict=True):
            rank[name] = value
    assert doubts(environment) == [said]
    for rank in environment["ranks"]:
        rank["device"] = "cpu"
    assert doubts(environment) == []


def test_variables_that_differ_between_ranks_are_named() -> None:
    differ = {"NCCL_ALGO": {"Ring": "0-1", "not set": "2"}}
    assert doubts(QUIET | {"variables_differ": differ}) == [
        "NCCL_ALGO differs between the ranks: Ring on ranks 0-1; not set on rank 2."
    ]


def test_the_environment_as_a_table() -> None:
    rows = dict(environment_table(QUIET).itertuples(index=False))
    assert rows["command"] == "python -m launch"
    assert rows["commit"] == "abc, with changes on top"
    assert "memory 81920 MiB" in rows["rank 0"]
    assert "device cuda:1" in rows["ranks 1-2"]
    assert "pid" not in rows["ranks 1-2"]
    assert rows["launch 0, after"] == "cpu mhz 3000 to 3000, sm mhz 1980 to 1980, utilization percent 0 to 0"
