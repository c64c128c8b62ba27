"""launch=torchrun_nodes: several hosts, each started over ssh, or by a person with the command that is printed."""

import os
import shlex
import socket
import sys
from pathlib import Path

from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import TorchrunNodes
from harness.schema.run_dir import RunDir
from launch.supervise import Start
from launch.task import Task
from launch.torchrun import environment


def starts(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> list[Start]:
    """One process for each host; or for this one alone, which is then the first, where a person starts the others."""
    launcher = config.launcher
    assert isinstance(launcher, TorchrunNodes)
    if not launcher.hosts:
        command = [*node_command(config, run_dir, task, 0, sys.executable), "--leash"]
        return [Start(command, environment(config), "node0", leash=True)]
    return [
        Start([*launcher.ssh, host, _remote(config, run_dir, task, node)], dict(os.environ), f"node{node}", leash=True)
        for node, host in enumerate(launcher.hosts)
    ]


def by_hand(config: BenchmarkConfig, run_dir: RunDir, task: Task) -> list[str]:
    """What a person types on each host, and where."""
    commands = [_remote(config, run_dir, task, node, leash=False) for node in range(config.torchrun.nnodes)]
    places = ["this host, where it is started for you", *["another host"] * (len(commands) - 1)]
    return [
        f"node {node}, on {place}:\n$ {command}" for node, (place, command) in enumerate(zip(places, commands, strict=True))
    ]


def node_command(config: BenchmarkConfig, run_dir: RunDir, task: Task, node: int, python: str) -> list[str]:
    """One host's part of a world."""
    launcher = config.launcher
    assert isinstance(launcher, TorchrunNodes)
    return [
        *(python, "-m", "launch.node", str(run_dir.path)),
        *("--node", str(node), "--master", f"{_master(launcher)}:{launcher.master_port}"),
        *("--rendezvous", launcher.rendezvous, "--world", task.world, *task.arguments),
    ]


def _remote(config: BenchmarkConfig, run_dir: RunDir, task: Task, node: int, *, leash: bool = True) -> str:
    """For the shell of another host, in the folder that this process is in."""
    launcher = config.launcher
    assert isinstance(launcher, TorchrunNodes)
    command = node_command(config, run_dir, task, node, launcher.python or sys.executable)
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join([*command, *(['--leash'] if leash else [])])}"


def _master(launcher: TorchrunNodes) -> str:
    first = launcher.hosts[0].rpartition("@")[2] if launcher.hosts else socket.gethostname()  # ssh takes a user before it
    return launcher.master_addr or first
