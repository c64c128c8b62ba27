"""Commands that start the ranks of several hosts."""

import shlex
import socket
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from harness.schema.run_dir import RunDir
from launch import nodes
from launch.job import configure
from launch.task import Task
from launch.torchrun import START, Place, command

NODES = ("launch=torchrun_nodes", "torchrun.nnodes=2", "torchrun.nproc_per_node=4", "rendezvous_s=7", "name=two")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir.create(configure([*NODES, f"results_dir={tmp_path}"], None), datetime(2026, 1, 2, 3, 4, 5))


def test_node_0_hosts_the_c10d_rendezvous_under_its_master_address(run_dir: RunDir) -> None:
    first, second = (command(run_dir.config(), run_dir, Task(), Place(node, "10.0.0.1:29500", "c10d")) for node in (0, 1))
    alike = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:29500", "--rdzv-id=two.2026-01-02_03-04-05"]
    conf = "--rdzv-conf=is_host={},join_timeout=7,read_timeout=7"
    asked = [[word for word in words if word.startswith(("--nnodes", "--rdzv", "--local"))] for words in (first, second)]
    assert asked[0] == [*alike, conf.format("true"), "--local-addr=10.0.0.1"]
    assert asked[1] == [*alike, conf.format("false")]
    assert "--nproc-per-node=4" in first


def test_static_names_the_node_and_the_master(run_dir: RunDir) -> None:
    words = command(run_dir.config(), run_dir, Task(), Place(1, "10.0.0.1:29500"))
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500"} <= set(words)


def test_without_hosts_node_0_starts_here_and_every_command_is_printed(run_dir: RunDir) -> None:
    config, task = run_dir.config(), Task(launch=1)
    (start,) = nodes.starts(config, run_dir, task)
    assert (start.log, start.leash, start.command[-1]) == ("node0", True, "--leash")
    here, there = (shlex.split(text.partition("\n$ ")[2]) for text in nodes.by_hand(config, run_dir, task))
    assert here == ["cd", str(Path.cwd()), "&&", *start.command[:-1]], (
        "only a process that the launcher starts has a pipe to watch"
    )
    place = here.index("--node") + 1
    assert (here[place], there[place]) == ("0", "1")
    assert there[: place - 1] == here[: place - 1]
    assert there[place + 1 :] == here[place + 1 :]
    assert here[here.index("--master") + 1].partition(":")[0] == socket.gethostname()
    assert (start.command[0], start.command[-3:-1]) == (sys.executable, ["--launch", "1"])


def test_one_host_takes_a_free_port_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    asked = ["experiment=smoke", "torchrun.nproc_per_node=2", f"results_dir={tmp_path}"]
    run_dir = RunDir.create(configure([*asked, "launch.master_port=29777"], None), datetime(2026, 1, 2, 3, 4, 5))
    words = command(run_dir.config(), run_dir, Task())
    assert words[:4] == [sys.executable, START, "launch.agent", "--rdzv-endpoint=127.0.0.1:29777"]
    assert "--rdzv-endpoint=127.0.0.1:0" in command(configure(asked, None), run_dir, Task())


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_one_host_started_as_several_are_listens_for_itself_alone(run_dir: RunDir, rendezvous: str) -> None:
    config = replace(run_dir.config(), torchrun=replace(run_dir.config().torchrun, nnodes=1))
    words = command(config, run_dir, Task(), Place(0, "node0:29500", rendezvous))
    assert words[:4] == [sys.executable, START, "launch.agent", "--rdzv-endpoint=127.0.0.1:29500"]


@pytest.mark.parametrize("place", [None, Place(1, "10.0.0.1:29500"), Place(1, "10.0.0.1:29500", "c10d")])
def test_torchrun_leaves_its_folder_where_it_goes_with_the_run(run_dir: RunDir, place: Place | None) -> None:
    assert f"--log-dir={run_dir.scratch('torchrun')}" in command(run_dir.config(), run_dir, Task(), place)


@pytest.mark.parametrize("place", [None, Place(1, "10.0.0.1:29500")])
def test_ranks_are_started_by_the_file_that_finds_reducebench_first(run_dir: RunDir, place: Place | None) -> None:
    words = command(run_dir.config(), run_dir, Task(launch=2), place)
    assert words[-5:] == [START, "harness.rank", str(run_dir.path), "--launch", "2"]
