"""Where a run happened: versions, devices, hosts, commit, and the environment variables that change numbers or times."""

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from harness.axes.workload.base import fingerprint
from harness.rank.environment.commit import checkout
from harness.rank.environment.files import spell_cpus
from harness.rank.environment.gpu import Gpu, torch_facts
from harness.rank.environment.host import Host
from harness.rank.environment.masking import mask_text
from harness.rank.environment.variables import differing, nccl_files, written_down
from harness.rank.environment.versions import versions
from harness.rank.environment.watch import speaks_for_its_host
from harness.rank.foreign_files import users
from harness.rank.material import Material
from harness.rank.process_group import World
from harness.schema.processes import UNSEEN
from harness.schema.rank_state import LAUNCHER_PID
from harness.schema.record import SCHEMA_VERSION


def describe(world: World, materials: Mapping[str, Material]) -> dict[str, Any]:
    """environment.json. All ranks call; rank 0's answer is whole."""
    said = [json.loads(text) for text in world.control.all_gather_text(json.dumps(_self(world)))]
    hosts = [host for rank in said if (host := rank.pop("on_host"))]
    differ = differing(world.control, os.environ)
    commit, dirty = checkout() if world.rank == 0 else (None, None)
    return {
        "schema_version": SCHEMA_VERSION,
        "argv": [mask_text(word) for word in _argv()],
        "versions": versions(),
        "commit": commit,
        "dirty": dirty,
        "world_size": world.size,
        "backend": world.backend,
        "device": world.device.type,
        "cores": len(os.sched_getaffinity(0)),
        "hosts": hosts,
        "ranks": said,
        "threads_per_rank": torch.get_num_threads(),
        "environment_variables": written_down(users(os.environ)),
        **({"variables_differ": differ} if differ else {}),
        "data": {key: _data(material) for key, material in materials.items()},
    }


def _data(material: Material) -> dict[str, Any]:
    """The data set, and the batches in the order in which iterations look back on them."""
    digests = [fingerprint(batch) for batch in material.batches]
    return {"samples": material.data_samples, "sha256": material.data_sha256, "batches_sha256": digests}


def _self(world: World) -> dict[str, Any]:
    """What a rank tells of itself, of its device, and where it speaks for them all, of its host."""
    host, affinity, gpu = Host(), os.sched_getaffinity(0), Gpu.of(world.device)
    topology = {"topology": gpu.topology()} if gpu else {}
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": str(world.device),
        "device_name": "cpu",
        "cpus": spell_cpus(affinity),
        "numa_nodes": host.numa_of(affinity),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        **(torch_facts(world.device) if world.device.type == "cuda" else {}),
        **(gpu.facts() if gpu else {}),
        "on_host": {**host.facts(), **topology, **_nccl_conf()} if speaks_for_its_host() else None,
    }


def _nccl_conf() -> dict[str, dict[str, str]]:
    """Settings that NCCL reads from files on this host; empty where there are none."""
    files = nccl_files(os.environ)
    settings = {name: " ".join(f"{key}={value}" for key, value in found.items()) for name, found in files.items()}
    return {"nccl_conf": settings} if settings else {}


def _argv() -> list[str]:
    """The user's command: the launcher's, or where the user started the ranks, this process's."""
    try:
        command = psutil.Process(int(os.environ[LAUNCHER_PID])).cmdline()
    except (KeyError, *UNSEEN):
        command = sys.orig_argv
    return [os.fsencode(word).decode(errors="replace") for word in command]
