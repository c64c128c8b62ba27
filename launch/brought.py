"""Code that the configuration of an existing run makes this host execute, and the owner of the run; shown before a resume."""

import os
import pwd
import re
import stat
from ast import ClassDef
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from harness.schema.case import AXES, PROBE
from harness.schema.config import BenchmarkConfig
from harness.schema.launcher import Torchrun, TorchrunNodes
from harness.schema.refusal import RefusedError
from harness.schema.run_dir import RunDir
from harness.schema.text import plain
from launch.source import Definition, Sources

_OPTIONS = ("harness.axes.", "harness.probes.")
_TORCH = re.compile(r"torch\.(nn|optim)\.[A-Z]\w*", re.ASCII)
"""Modules and optimizers. Other names, as torch.hub.load, execute what they are given."""
_HEAD = "config.yaml decides what is executed:"
_NOTHING = "config.yaml sets no env and no config_dir, and every _target_ is a class of harness or torch"


def brought(run_dir: RunDir, config: BenchmarkConfig) -> list[str]:
    """Lines for the user: code outside harness and torch that the configuration executes, and the hosts."""
    settings = [*_settings(config), *_launch(config)]
    width = max((len(key) for key, _ in settings), default=0)
    lines = [f"  {plain(key):<{width}}  {plain(value)}" for key, value in settings]
    whose = doubt(run_dir)
    return [*([f"this run {whose}"] if whose else []), *([_HEAD, *lines] if lines else [_NOTHING])]


def _settings(config: BenchmarkConfig) -> Iterator[tuple[str, str]]:
    sources = Sources([])
    for key, value in config.env.items():
        yield f"env.{key}", value
    if config.config_dir:
        yield "config_dir", f"{config.config_dir}: Python imports from there first"
    for axis in (*AXES, PROBE):
        for option, node in getattr(config, axis).items():
            for key, target in _targets(f"{axis}.{option}", node):
                if not _is_own(sources, target):
                    yield f"{key}._target_", target


def _is_own(sources: Sources, target: str) -> bool:
    """True for a class that a file of the harness defines: `harness.axes.sync.base.torch.ctypes.CDLL` leads elsewhere."""
    if not target.startswith(_OPTIONS):
        return _TORCH.fullmatch(target) is not None
    try:
        found = sources.find(target)
    except ValueError:
        return False
    return isinstance(found, Definition) and isinstance(found.statement, ClassDef) and found.module.name.startswith(_OPTIONS)


def _launch(config: BenchmarkConfig) -> Iterator[tuple[str, str]]:
    """Hosts, programs and free-form arguments: whatever is not the default of its way of starting the ranks."""
    launcher = config.launcher
    usual = asdict(type(launcher)())
    for key, value in asdict(launcher).items():
        if value != usual[key]:
            yield f"launch.{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(launcher, TorchrunNodes) and not launcher.hosts:
        yield "hosts", f"{config.torchrun.nnodes}, this one first; the others are started by hand"
    elif not isinstance(launcher, Torchrun | TorchrunNodes):
        yield "hosts", f"{config.torchrun.nnodes} of Slurm's"


def _targets(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Every `_target_` in a node, also in lists: Hydra makes objects of those, too."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, str(node["_target_"])
        for name, child in node.items():
            yield from _targets(f"{key}.{name}", child)
    elif isinstance(node, list | tuple):
        for place, child in enumerate(node):
            yield from _targets(f"{key}.{place}", child)


def check_owner(run_dir: RunDir) -> None:
    """Raise RefusedError if another user decides what the run executes."""
    whose = doubt(run_dir)
    if whose:
        raise RefusedError(
            f"--resume {run_dir.path}: the run {whose}, and its config.yaml decides what your ranks execute; --dry-run "
            "shows it; try a copy of your own (cp -r), or --accept-owner to resume this one"
        )


def doubt(run_dir: RunDir) -> str:
    """`belongs to eve (uid 1003)`, or `can be changed by every user`; empty if neither is true."""
    found = [path.stat() for path in (run_dir.path, run_dir.path / "config.yaml", run_dir.ranks.path) if path.exists()]
    foreign = next((one.st_uid for one in found if one.st_uid != os.geteuid()), None)
    if foreign is not None:
        return f"belongs to {_user(foreign)}"
    return "can be changed by every user of this machine" if any(one.st_mode & stat.S_IWOTH for one in found) else ""


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
