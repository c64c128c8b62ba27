"""What only one way of starting the ranks needs: `launch=torchrun`, `torchrun_nodes` or `slurm`, and `launch.*`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.schema.keys import config_key, declared
from harness.schema.text import literal

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")
"""It asks nothing, and notices within seconds that a host is gone."""

_MOST_PER_NODE = 2**16
"""Largest number of GPUs or CPUs of a node."""


@declared
@dataclass
class Torchrun:
    """One host: this one."""

    master_port: int = config_key(0, affects="conduct", help="Port of the rendezvous; 0: a free one.")

    def __post_init__(self) -> None:
        _check_port(self.master_port, zero="a free one")


@declared
@dataclass
class TorchrunNodes:
    """Several hosts that see the same results_dir. Without `hosts`, each one's command is printed, and this is the first."""

    hosts: list[str] = config_key(
        [],
        affects="conduct",
        help="Where ssh starts the ranks, the first one at the rendezvous; empty: a person starts them.",
    )
    rendezvous: str = config_key(
        "static",
        affects="conduct",
        help="static: each host knows its place; c10d: they find it out among themselves.",
    )
    master_addr: str = config_key(
        "",
        affects="conduct",
        help="The first host as the others reach it; empty: the first of `hosts`, or this host's name.",
    )
    master_port: int = config_key(29400, affects="conduct", help="Port of the rendezvous there.")
    ssh: list[str] = config_key(list(_SSH), affects="conduct", help="What takes a host and a command.")
    python: str = config_key("", affects="conduct", help="The hosts' interpreter; empty: the same path as here.")

    def __post_init__(self) -> None:
        if self.rendezvous not in ("static", "c10d"):
            raise ValueError(f"launch.rendezvous={self.rendezvous!r}: expected static or c10d")
        _check_port(self.master_port)
        _check_printable(ssh=self.ssh, python=[self.python])
        if not self.ssh or not self.ssh[0]:
            raise ValueError("launch.ssh: expected a program")
        for host in [*self.hosts, self.master_addr]:
            if host.startswith("-") or any(not character.isprintable() or character.isspace() for character in host):
                raise ValueError(f"launch.hosts: {host!r} is no host")


@declared
@dataclass
class Slurm:
    """A batch job, whose script lies in the run directory."""

    partition: str = config_key("", affects="conduct", help="Where the job runs; empty: the cluster's default.")
    account: str = config_key("", affects="conduct", help="Whom it is charged to; empty: the user's default.")
    time: str = config_key("", affects="conduct", help="As sbatch takes it: 00:30:00.")
    gpus_per_node: int = config_key(0, affects="conduct", help="0: none is asked for.")
    cpus_per_task: int = config_key(
        0,
        affects="conduct",
        help="CPUs of a node for its ranks together; 0: as many as they have threads.",
    )
    extra_lines: list[str] = config_key(
        [],
        affects="conduct",
        help="Of the script, before the ranks start: `#SBATCH --constraint=ib`, `module load cuda`.",
    )
    container: list[str] = config_key(
        [],
        affects="conduct",
        help="What runs a command in a container, as [apptainer, exec, image.sif]; empty: none.",
    )
    container_python: str = config_key("", affects="conduct", help="The interpreter in the container; empty: the nodes'.")
    python: str = config_key("", affects="conduct", help="The nodes' interpreter; empty: the same path as here.")
    master_port: int = config_key(
        0,
        affects="conduct",
        help="Port of the rendezvous on the first node; 0: 29400 and the last three digits of the job's number.",
    )
    poll_s: float = config_key(2.0, affects="conduct", help="Seconds from one look at the job to the next.")

    def __post_init__(self) -> None:
        for key in ("partition", "account", "time"):
            if any(not character.isprintable() or character.isspace() for character in getattr(self, key)):
                raise ValueError(f"launch.{key}={getattr(self, key)!r}: expected one word")
        for key in ("gpus_per_node", "cpus_per_task"):
            if not 0 <= getattr(self, key) <= _MOST_PER_NODE:
                limits = f"a whole number, at least 0 and at most {_MOST_PER_NODE}"
                raise ValueError(f"launch.{key}={getattr(self, key)}: out of range; accepted: {limits}")
        _check_port(self.master_port, zero="29400 and the last three digits of the job's number")
        if not 0 < self.poll_s < 3600:
            raise ValueError(f"launch.poll_s={self.poll_s}: expected seconds, more than 0")
        _check_printable(extra_lines=self.extra_lines, container=self.container, python=[self.python, self.container_python])


def _check_port(port: int, zero: str = "") -> None:
    """Raise ValueError where it is no port; `zero` says what 0 means, where it means something."""
    if not (0 if zero else 1) <= port < 2**16:
        raise ValueError(f"launch.master_port={port}: expected a port, from 1 to 65535{zero and f', or 0 for {zero}'}")


def _check_printable(**texts: list[str]) -> None:
    for key, given in texts.items():
        for text in given:
            if not text.replace("\t", " ").isprintable():
                raise ValueError(f"launch.{key}: {text!r} holds what cannot be printed; one line an entry")


Launcher = Torchrun | TorchrunNodes | Slurm
KINDS: dict[str, type[Any]] = {"torchrun": Torchrun, "torchrun_nodes": TorchrunNodes, "slurm": Slurm}


def to_launcher(node: Mapping[str, Any]) -> Launcher:
    """What conf/launch/ and `launch.*` make of it; nothing is one host. Raises ValueError."""
    kind = node.get("kind", "torchrun")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"launch.kind={kind!r}: expected one of {', '.join(KINDS)}")
    given = {key: value for key, value in node.items() if key != "kind"}
    known = {each.name for each in fields(KINDS[kind])}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(f"launch.{unknown[0]}: no such key of launch={kind}; it has {', '.join(sorted(known)) or 'none'}")
    for key, value in given.items():
        if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            raise ValueError(f"launch.{key}={value}: holds a list or a mapping; accepted: a list of texts")
    try:
        made: Launcher = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(KINDS[kind]), literal(given)))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"launch.{error.full_key or ''}: {str(error).splitlines()[0]}") from error
    return made
