"""Pre-flight: before anything is measured, ranks that run unlike programs, share a GPU, or sum wrongly are refused by name."""

import json
import os
import resource
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch

from harness.probes import crafted
from harness.probes.control import Control
from harness.rank.agreement import CaseFailedError, together
from harness.rank.environment.commit import checkout
from harness.rank.environment.files import spell_cpus as spell
from harness.rank.environment.gpu import Gpu
from harness.rank.environment.versions import versions
from harness.rank.environment.watch import speaks_for_its_host
from harness.rank.process_group import World
from harness.schema.refusal import RefusedError
from harness.tensors import collectives

_ELEMENTS = 4096
_SEED = 6
_OTHER_FILES = 64
"""Libraries, logs, stores and sockets of one rank alone: 13 were seen, and strategies make groups of their own."""
_TOLD_BY_ANOTHER = ""
"""What all ranks of a host have in common, one of them says."""
_GLOO, _NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
SHARING = "NCCL_MULTI_RANK_GPU_ENABLE"


def check_alike(control: Control, device: torch.device, backend: str) -> None:
    """Every rank tells what it runs, and on what. Raises RefusedError, on all ranks, with who has what."""
    told = [json.loads(text) for text in control.all_gather_text(json.dumps(_facts(device)))]
    hosts = [facts.pop("host") for facts in told]
    gpus = [facts.pop("gpu") for facts in told]
    unlike = _unlike(told, hosts)
    if unlike:
        raise RefusedError("\n".join(["the ranks do not run the same programs:", *unlike]))
    if backend == "nccl" and os.environ.get(SHARING) != "1":
        _check_own_gpu(gpus, hosts)


def allow_sockets(size: int) -> None:
    """gloo joins each rank with every other, in three groups (docs/scaling.md). Raises RefusedError where that is too many."""
    needed, (soft, hard) = _OTHER_FILES + 3 * size, resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RefusedError(
            f"a rank among {size} has about {needed} files and sockets open, and may have {hard}: raise ulimit -Hn"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def check_interfaces(*, nccl: bool, named: Mapping[str, str] = os.environ) -> None:
    """Raises RefusedError where an interface that gloo, or NCCL, is to use does not exist on this host."""
    gloo, given = [name for name in named.get(_GLOO, "").split(",") if name], named.get(_NCCL, "") if nccl else ""
    if not gloo and not given:
        return
    try:
        existing = [name for _, name in socket.if_nameindex()]
    except OSError:  # a sandbox without netlink: gloo and NCCL find out for themselves
        return
    missing = [(_GLOO, name) for name in gloo if name not in existing]
    if given and not given.startswith("^") and not any(_nccl_takes(given, name) for name in existing):
        missing.append((_NCCL, given))
    if missing:
        key, value = missing[0]
        raise RefusedError(
            f"{key}={value}: {socket.gethostname()} has no such network interface; it has {', '.join(existing)}; "
            f"try +env.{key}=NAME"
        )


def _nccl_takes(given: str, name: str) -> bool:
    """NCCL takes the beginnings of names, or, after an equals sign, whole names."""
    names = given.removeprefix("=").split(",")
    return name in names if given.startswith("=") else any(name.startswith(prefix) for prefix in names if prefix)


def check_sum(world: World) -> None:
    """One small all-reduce of whole numbers. Raises RefusedError, on all ranks, when it is not exact, or does not end."""
    sent = torch.zeros(_ELEMENTS, dtype=torch.float32, device=world.device)
    crafted.fill(sent, crafted.contribution(world.rank, world.size, _SEED))
    try:
        together(world.control, lambda: _all_reduced(sent, world))
    except CaseFailedError as error:
        what = f"a {world.backend} all_reduce of {_ELEMENTS} whole numbers"
        raise RefusedError(f"pre-flight: {what} went wrong: {error}") from error


def _all_reduced(tensor: torch.Tensor, world: World) -> None:
    collectives.all_reduce(tensor, group=world.measured)
    crafted.check(tensor, crafted.total(world.size, _SEED))


def _facts(device: torch.device) -> dict[str, str | None]:
    gpu = Gpu.of(device)
    commit, dirty = checkout() if speaks_for_its_host() else (_TOLD_BY_ANOTHER, False)
    return {
        "host": socket.gethostname(),
        "gpu": gpu_uuid(device),
        **versions(),
        "driver": gpu.facts()["driver"] if gpu else None,
        "commit": commit if not dirty else f"{commit} with changes",
    }


def gpu_uuid(device: torch.device) -> str | None:
    """Which device it is, whatever number it has here; None on the CPU."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None) if device.type == "cuda" else None  # ROCm has none
    return None if uuid is None else str(uuid)


def _unlike(told: Sequence[Mapping[str, str | None]], hosts: Sequence[str]) -> list[str]:
    """A line for each value of what is not the same everywhere."""
    lines = []
    for what in told[0]:
        ranks = defaultdict(list)
        for rank, facts in enumerate(told):
            if facts[what] != _TOLD_BY_ANOTHER:
                ranks[facts[what]].append(rank)
        if len(ranks) > 1:
            lines += [f"  {what:12} {value or 'none':24} {_who(own, hosts)}" for value, own in ranks.items()]
    return lines


def _check_own_gpu(gpus: Sequence[str | None], hosts: Sequence[str]) -> None:
    ranks = defaultdict(list)
    for rank, uuid in enumerate(gpus):
        ranks[uuid].append(rank)
    for uuid, sharing in ranks.items():
        if uuid is not None and len(sharing) > 1:
            raise RefusedError(
                f"{_who(sharing, hosts)} share GPU {uuid}, and nccl takes one rank a GPU: lower torchrun.nproc_per_node, "
                f"or use backend=gloo (or, from NCCL 2.30 on, +env.{SHARING}=1)"
            )


def _who(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    where = sorted({hosts[rank] for rank in ranks})
    return f"rank{'s' * (len(ranks) > 1)} {spell(set(ranks))} on {', '.join(where[:8])}{', ...' * (len(where) > 8)}"
